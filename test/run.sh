#!/usr/bin/env bash
# Runs test programs, each given as one argument with its own arguments, and adds up their last lines
# (`N passed, N failed`). A program that fails, crashes or prints no such line fails the whole run. As many run
# side by side as there are cores (TEST_JOBS=1: one after the other); what they say is printed in their order.
# Threads that wait should sleep here: tests also run where other work does, and spinning would starve it.
set -m # a process group for each, so that Ctrl-C ends them all
export OMP_WAIT_POLICY=passive
cores=$(nproc 2> /dev/null || echo 2) jobs=${TEST_JOBS:-}
((${jobs:=cores} <= $#)) || jobs=$#
# Two threads at least, whatever the number of programs: what threads could do wrong is tested, too.
share=$((cores / (jobs > 0 ? jobs : 1)))
((share >= cores)) || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 2 ? share : 2))}

dir=$(mktemp -d) || exit 1
groups=()
stop() {
    exec 2> /dev/null # no word on each of them
    for group in "${groups[@]}"; do kill -TERM -- "-$group" 2> /dev/null; done
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM HUP

# run INDEX COMMAND: output and status of the command and the seconds it took, in files.
run() {
    local begin status
    begin=$(date +%s)
    env $2 > "$dir/$1.output" 2>&1 < /dev/null
    status=$?
    echo "$status $(($(date +%s) - begin))" > "$dir/$1.ended"
}

passed=0 failed=0
report() { # INDEX COMMAND
    local status seconds last name
    read -r status seconds < "$dir/$1.ended"
    last=$(tail -n 1 "$dir/$1.output")
    name=$(tr ' ' '\n' <<< "$2" | grep -m 1 -E 'test_|\.py$' | xargs basename)
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        if [[ $status -ne 0 && ${BASH_REMATCH[2]} -eq 0 ]]; then failed=$((failed + 1)); fi
        if [[ $status -eq 0 && ${BASH_REMATCH[1]} -eq 0 ]]; then failed=$((failed + 1)); fi
    elif [[ $status -eq 0 && $last == skipped:* ]]; then
        :
    else
        failed=$((failed + 1)) last="ended with status $status: $last"
    fi
    [[ $status -eq 0 ]] || tail -n 30 "$dir/$1.output"
    printf '%-28s %4ds  %s\n' "$name" "$seconds" "$last"
}

# A pipe holds one line for each program that may start.
mkfifo "$dir/free" && exec 3<> "$dir/free"
for ((i = 0; i < jobs; i++)); do echo >&3; done
commands=("$@") next=0
for ((i = 0; i < $#; i++)); do
    read -r -u 3 _
    { run "$i" "${commands[i]}"; echo >&3; } &
    groups+=($!)
    while [[ -e $dir/$next.ended ]]; do report "$next" "${commands[next]}" && next=$((next + 1)); done
done
for (( ; next < $#; next++)); do
    wait "${groups[next]}"
    report "$next" "${commands[next]}"
done
groups=()
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
