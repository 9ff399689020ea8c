#!/usr/bin/env bash
# Runs test programs, each given as one argument with its own arguments, and adds up their last lines
# (`N passed, N failed`). A program that fails, crashes or prints no such line fails the whole run.
# Threads that wait should sleep here: tests also run where other work does, and spinning would starve it.
export OMP_WAIT_POLICY=passive
passed=0 failed=0
for command in "$@"; do
    begin=$(date +%s)
    output=$(env $command 2>&1)
    status=$?
    last=$(tail -n 1 <<< "$output")
    name=$(tr ' ' '\n' <<< "$command" | grep -m 1 test_ | xargs basename)
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        if [[ $status -ne 0 && ${BASH_REMATCH[2]} -eq 0 ]]; then failed=$((failed + 1)); fi
        if [[ $status -eq 0 && ${BASH_REMATCH[1]} -eq 0 ]]; then failed=$((failed + 1)); fi
    elif [[ $status -eq 0 && $last == skipped:* ]]; then
        :
    else
        failed=$((failed + 1)) last="ended with status $status: $last"
    fi
    [[ $status -eq 0 ]] || echo "$output" | tail -n 30
    printf '%-28s %4ds  %s\n' "$name" $(($(date +%s) - begin)) "$last"
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
