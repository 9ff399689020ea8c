#!/usr/bin/env python3
"""Asks a language model what experts take: ask.py WINDOWS.jsonl ANSWERS.jsonl --url URL --model NAME

    build/experts --ckpt RUN --data DATA --windows windows.jsonl
    dev/interp/ask.py windows.jsonl answers.jsonl --url http://127.0.0.1:8080/v1 --model NAME
    build/experts --ckpt RUN --data DATA --answers answers.jsonl

URL is that of any service that answers as OpenAI's chat completions do. A key, if it wants one, is taken from the
environment variable MOEX_API_KEY. Of every expert the model is asked for a hypothesis, from windows with marks, and
then about other windows, five at a time, whether the hypothesis describes what is marked there; and the same with
the hypothesis of another expert, the control (dev/interp/expert_windows.h). Every reply is kept in
ANSWERS.jsonl.replies under the hash of what was asked: a stopped run goes on where it was, and asks nothing twice.
What fails on the way (no connection, status 429 or 5xx, half a reply) is tried again; an answer that cannot be read
is asked for once more, and is null if that does not help. Python's standard library is all it needs.
"""
import argparse
import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request

AT_ONCE = 5  # windows in a question

EXPLAIN = """You study one part, an expert, of a small language model. Below are {count} pieces of text that the model \
read. The tokens that the model sent to this expert stand between << and >>; what stands outside went elsewhere. After \
a piece come some of its marked tokens with how much the expert did for them, from 0 to 10.

What do the marked tokens have in common that the others do not: which tokens they are, where they stand, or what \
comes before them? Look at all pieces, not at one. The marks themselves are not part of the text.

{pieces}

Answer with one line that begins with EXPLANATION: and says it in 3 to 20 words."""

SCORE = """A part of a language model is said to handle tokens of this kind:

{hypothesis}

Below are {count} pieces of text in which some tokens are marked with << and >>. For each piece say 1 if the marked \
tokens are, for the most part, of that kind, and 0 if not. It does not matter whether the piece as a whole is about \
it, only whether what is marked is.

{pieces}

Answer with a JSON list of {count} numbers, each 0 or 1, in the order of the pieces, and nothing else."""


class Error(Exception):
    pass


class Replies:
    """Every reply that was received, by the hash of its request, in a file that only grows."""

    def __init__(self, path):
        self.known = {}
        if os.path.exists(path):
            with open(path, "rb") as file:
                text = file.read()
            whole = text[:text.rfind(b"\n") + 1]  # a line that was cut off when the run was killed
            for line in whole.splitlines():
                try:
                    entry = json.loads(line)
                    self.known[entry["request"]] = entry["reply"]
                except (ValueError, KeyError, TypeError):
                    raise Error(f"{path}: a line that is no reply; move the file away to ask again") from None
            if len(whole) < len(text):
                with open(path, "r+b") as file:
                    file.truncate(len(whole))
        self.file = open(path, "a", encoding="utf-8")

    def keep(self, request, reply):
        self.known[request] = reply
        self.file.write(json.dumps({"request": request, "reply": reply}) + "\n")
        self.file.flush()


class Service:
    def __init__(self, options, replies):
        self.url = options.url.rstrip("/") + "/chat/completions"
        self.model, self.timeout, self.tries, self.seed = options.model, options.timeout, options.tries, options.seed
        self.wait, self.replies = options.wait, replies
        self.asked = 0

    def ask(self, prompt, again=0):
        """The text of the reply. again: a request of its own, to ask once more for the same."""
        body = json.dumps({"model": self.model, "temperature": 0, "seed": self.seed + again,
                           "messages": [{"role": "user", "content": prompt}]}).encode()
        request = hashlib.sha256(self.url.encode() + b"\n" + body).hexdigest()
        if request not in self.replies.known:
            self.replies.keep(request, self.send(body))
            self.asked += 1
        return self.replies.known[request]

    def send(self, body):
        wait = self.wait
        for attempt in range(self.tries):
            if attempt:
                time.sleep(wait)
                wait = min(60, 2 * wait)
            try:
                return self.send_once(body)
            except urllib.error.HTTPError as e:
                why = f"status {e.code}"
                if e.code != 429 and e.code < 500:
                    raise Error(f"{self.url}: {why}: {e.read(200).decode(errors='replace')!r}") from None
            except (OSError, http.client.HTTPException) as e:  # no connection, too late, half a reply
                why = f"{type(e).__name__}: {getattr(e, 'reason', None) or e}"
            except (ValueError, KeyError, IndexError, TypeError):
                why = "a reply that is not that of a chat completion"
        raise Error(f"{self.url}: {why}, {self.tries} times; what was answered before is kept: the same command goes on")

    def send_once(self, body):
        headers = {"Content-Type": "application/json"}
        if os.environ.get("MOEX_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['MOEX_API_KEY']}"
        with urllib.request.urlopen(urllib.request.Request(self.url, body, headers), timeout=self.timeout) as reply:
            text = json.loads(reply.read())["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
        return text


def hypothesis_in(reply):
    """The line behind EXPLANATION:, or None."""
    found = re.findall(r"EXPLANATION:[ \t*]*(\S.*)", reply)
    return " ".join(found[-1].split())[:400] if found else None


def answers_in(reply, count):
    """The last JSON list of `count` zeros and ones in a reply, or None."""
    for found in reversed(re.findall(r"\[[\s01,]*\]", reply)):
        try:
            answers = json.loads(found)
        except ValueError:
            continue
        if len(answers) == count and all(type(a) is int for a in answers):
            return answers
    return None


def explain(service, expert):
    pieces = "\n\n".join(
        f"Piece {i + 1}: {w['text']}\n" + ", ".join(f"{json.dumps(t)} {n}" for t, n in w["strongest"])
        for i, w in enumerate(expert["explain"]))
    prompt = EXPLAIN.format(count=len(expert["explain"]), pieces=pieces)
    return hypothesis_in(service.ask(prompt)) or hypothesis_in(service.ask(prompt, again=1))


def score(service, hypothesis, windows, progress):
    answers = []
    for at in range(0, len(windows), AT_ONCE):
        some = windows[at:at + AT_ONCE]
        pieces = "\n\n".join(f"Piece {i + 1}: {text}" for i, text in enumerate(some))
        found = None
        if hypothesis is not None:
            prompt = SCORE.format(hypothesis=hypothesis, count=len(some), pieces=pieces)
            found = answers_in(service.ask(prompt), len(some))
            found = found or answers_in(service.ask(prompt, again=1), len(some))
        answers += found or [None] * len(some)
        progress.step()
    return answers


class Progress:
    """How far it is, on stderr: with rate and time left, a line every ten seconds or redrawn on a terminal."""

    def __init__(self, total):
        self.total, self.done, self.begin, self.last = total, 0, time.time(), time.time()

    def step(self):
        self.done += 1
        now, terminal = time.time(), sys.stderr.isatty()
        if now - self.last < (0.2 if terminal else 10) and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(1e-9, now - self.begin)
        end = "\n" if self.done == self.total or not terminal else ""
        print(f"{chr(13) if terminal else ''}questions {self.done}/{self.total}  {rate:.1f} questions/s  "
              f"eta {(self.total - self.done) / rate:.0f}s", end=end, file=sys.stderr, flush=True)


def read_windows(path):
    experts = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                expert = json.loads(line)
                expert["name"], expert["windows"], expert["control"], expert["explain"], expert["score"]
            except (ValueError, KeyError, TypeError):
                raise Error(f"{path}: line {number}: not of `experts --windows`") from None
            experts.append(expert)
    if not experts:
        raise Error(f"{path}: empty, expected an expert a line")
    return experts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("windows", metavar="WINDOWS.jsonl")
    add("answers", metavar="ANSWERS.jsonl")
    add("--url", required=True, help="what comes before /chat/completions")
    add("--model", required=True, metavar="NAME")
    add("--seed", type=int, default=1, metavar="N", help="sent along [%(default)s]")
    add("--timeout", type=float, default=120, metavar="SECONDS", help="for a reply [%(default)s]")
    add("--tries", type=int, default=6, metavar="N", help="of a request that fails on the way [%(default)s]")
    add("--wait", type=float, default=1, metavar="SECONDS", help="before the second, then twice as long [%(default)s]")
    options = parser.parse_args()
    experts = read_windows(options.windows)
    service = Service(options, Replies(options.answers + ".replies"))
    hypotheses = {}
    progress = Progress(len(experts))
    for expert in experts:
        hypotheses[expert["name"]] = explain(service, expert)
        progress.step()
    progress = Progress(sum(2 * -(-len(expert["score"]) // AT_ONCE) for expert in experts))
    lines, unread = [], 0
    for expert in experts:
        own, control = (score(service, hypotheses.get(name), expert["score"], progress)
                        for name in (expert["name"], expert["control"]))
        unread += own.count(None) + control.count(None)
        lines.append(json.dumps({"name": expert["name"], "windows": expert["windows"],
                                 "hypothesis": hypotheses[expert["name"]] or "", "answers": own,
                                 "control_answers": control}) + "\n")
    with open(options.answers + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(options.answers + ".tmp", options.answers)
    print(f"{options.answers}: {len(experts)} experts, {service.asked} questions asked now, "
          f"{sum(h is None for h in hypotheses.values())} without a hypothesis, {unread} answers that cannot be read")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("moex: stopped; what was answered is kept: the same command goes on")
    except Error as e:
        sys.exit(f"moex: {e}")
    except OSError as e:
        sys.exit(f"moex: {e.filename or 'file'}: {e.strerror or e}")
