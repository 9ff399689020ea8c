#!/usr/bin/env python3
"""dev/interp/ask.py against a service in this process, between experts --windows and experts --answers:
test_ask.py FOLDER, which holds experts.

The service explains an expert by the most frequent of its marked characters and finds it again by its presence, so
every score is known in advance. It is also one that answers late, with status 500, with half a body, with what is no
chat completion, with prose, with the wrong count, and one that refuses. Loopback alone. Needs torch and numpy, for a
small model.
"""
import collections
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/dev/torch")

passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def marked(piece):
    return re.findall(r"<<(.*?)>>", piece, re.S)


class Service:
    """faults: what the next requests meet, one each; then all is well."""

    def __init__(self, faults=()):
        self.faults, self.requests, self.keys = list(faults), 0, set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests += 1
                outer.keys.add(self.headers.get("Authorization"))
                try:
                    outer.reply(self, json.loads(body))
                except OSError:
                    pass  # the client did not wait

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        prompt = request["messages"][0]["content"]
        pieces = re.split(r"Piece \d+: ", prompt)[1:]
        if "EXPLANATION" in prompt:
            count = collections.Counter("".join("".join(marked(p)) for p in pieces))
            return f"Let me see.\nEXPLANATION: the character {ord(count.most_common(1)[0][0])}\n"
        kind = chr(int(re.search(r"the character (\d+)", prompt).group(1)))
        return json.dumps([int(any(kind in text for text in marked(p))) for p in pieces])

    def reply(self, to, request):
        fault = self.faults.pop(0) if self.faults else None
        status, text = 200, self.answer(request)
        if fault == "late":
            time.sleep(1.5)
        if fault in ("500", "429", "401"):
            status = int(fault)
        if fault == "prose":
            text = "I would rather not say, they all look alike."
        if fault == "count":
            text = "[1, 0]"
        if fault == "in prose":
            text = f"Of these pieces [five], I find: {text}. I hope this helps!"
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        if fault == "no completion":
            body = b'{"choices": []}'
        to.send_response(status)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body[:len(body) // 2] if fault == "half" else body)


def ask(folder, windows, answers, service, *more):
    command = [sys.executable, f"{ROOT}/dev/interp/ask.py", f"{folder}/{windows}", f"{folder}/{answers}", "--url",
               service.url, "--model", "stub", "--timeout", "1", "--wait", "0.01", "--tries", "3", *more]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, MOEX_API_KEY="secret"))


def lines_of(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def check_faults(folder):
    """Two experts, of a and of b: one's windows have its letter marked, and every second the other's."""
    experts = []
    for own, other in ("ab", "ba"):
        score = [f"x<<{letter}>>y z{i}" for i in range(4) for letter in (own, other)]
        experts.append({"name": f"0/{own}", "windows": f"hash {own}", "control": f"0/{other}", "score": score,
                        "explain": [{"text": f"q<<{own}>>r {i}", "strongest": [[own, 10]]} for i in range(3)]})
    with open(f"{folder}/w.jsonl", "w") as file:
        file.writelines(json.dumps(e) + "\n" for e in experts)
    truth, wrong = [1, 0] * 4, [0, 1] * 4
    service = Service()
    done = ask(folder, "w.jsonl", "plain.jsonl", service)
    check(done.returncode == 0 and "2 experts, 10 questions" in done.stdout, done.stdout + done.stderr)
    check(service.requests == 10 and service.keys == {"Bearer secret"}, f"{service.requests} {service.keys}")
    answers = lines_of(f"{folder}/plain.jsonl")
    check([a["answers"] for a in answers] == [truth] * 2, f"{answers}")
    check([a["control_answers"] for a in answers] == [wrong] * 2, f"{answers}")
    check(answers[0]["hypothesis"] == "the character 97" and answers[1]["windows"] == "hash b", f"{answers}")
    # What is known is not asked again; what was cut off in the file of replies is.
    done = ask(folder, "w.jsonl", "plain.jsonl", service)
    check(service.requests == 10 and " 0 questions" in done.stdout, done.stdout)
    with open(f"{folder}/plain.jsonl.replies", "r+b") as file:
        file.truncate(os.path.getsize(f"{folder}/plain.jsonl.replies") - 5)
    done = ask(folder, "w.jsonl", "plain.jsonl", service)
    check(service.requests == 11 and done.returncode == 0, f"{service.requests} {done.stderr}")
    service.close()

    # Faults on the way change nothing in the answers; those in an answer are asked once more.
    for faults, unread in ((["late"], 0), (["500", "429"], 0), (["half", "half"], 0), (["no completion"], 0),
                           (["prose"], 0), (["in prose"] * 10, 0), ([None] * 2 + ["prose"], 0),
                           ([None] * 2 + ["count"], 0), ([None] * 2 + ["prose", "prose"], 5),
                           ([None] * 2 + ["count", "prose"], 5)):
        service = Service(faults)
        name = "-".join(str(f) for f in faults) + ".jsonl"
        done = ask(folder, "w.jsonl", name, service)
        service.close()
        check(done.returncode == 0, f"{faults}: {done.stderr}")
        got = lines_of(f"{folder}/{name}") if done.returncode == 0 else []
        check(bool(got) and got[0]["answers"] == [None] * unread + truth[unread:] and got[1]["answers"] == truth,
              f"{faults}: {got}")
        check(f"{unread} answers that cannot be read" in done.stdout, f"{faults}: {done.stdout}")
    # No hypothesis at all: nothing is asked about it.
    service = Service(["prose", "prose"])
    done = ask(folder, "w.jsonl", "silent.jsonl", service)
    got = lines_of(f"{folder}/silent.jsonl")
    check(got[0]["hypothesis"] == "" and got[0]["answers"] == [None] * 8 == got[1]["control_answers"], f"{got}")
    check(got[1]["answers"] == truth and "1 without a hypothesis" in done.stdout, f"{got} {done.stdout}")
    service.close()
    # A service that is down: stopped with one line, and the next run goes on where it was.
    service = Service([None] * 4 + ["500"] * 3)
    done = ask(folder, "w.jsonl", "stopped.jsonl", service)
    check(done.returncode == 1 and done.stderr.splitlines()[-1].startswith("moex: ") and "500" in done.stderr
          and not os.path.exists(f"{folder}/stopped.jsonl"), done.stderr)
    done = ask(folder, "w.jsonl", "stopped.jsonl", service)
    check(done.returncode == 0 and service.requests == 4 + 3 + 6, f"{service.requests}: {done.stderr}")
    service.close()
    service = Service(["401"])
    done = ask(folder, "w.jsonl", "key.jsonl", service)
    check(done.returncode == 1 and "401" in done.stderr and service.requests == 1, done.stderr)
    with open(f"{folder}/bad.jsonl", "w") as file:
        file.write('{"name": "0/1"}\n')
    done = ask(folder, "bad.jsonl", "bad.out", service)
    check(done.returncode == 1 and "line 1" in done.stderr, done.stderr)
    service.close()
    done = ask(folder, "w.jsonl", "gone.jsonl", service)
    check(done.returncode == 1 and "moex: " in done.stderr, done.stderr)


def check_whole(folder, experts):
    """A small model from windows to scores: what experts reads is what the service knew."""
    import numpy as np
    import torch

    import moex
    torch.manual_seed(1)
    moex.save(moex.MoeX(moex.Config(2, 2, 16, 32, 257, d_expert=16, n_expert=4, tokenizer="bytes")),
              f"{folder}/model.safetensors")
    random = np.random.default_rng(1)
    text = "".join("The (cat) saw 12 [big] dogs. "[i % 29] if random.random() < 0.7 else chr(97 + random.integers(6))
                   for i in range(300 * 32 + 1)).encode()
    header = np.zeros(256, np.int32)
    header[:5] = 20240520, 1, len(text), 1, 0
    with open(f"{folder}/text.bin", "wb") as file:
        file.write(header.tobytes() + np.frombuffer(text, np.uint8).astype(np.uint16).tobytes())

    def run(*more):
        command = [experts, "--ckpt", f"{folder}/model.safetensors", "--data", f"{folder}/text.bin", "--rows", "300",
                   "--least", "60", "--least-documents", "15", "--examples", "20", *more]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("--windows", f"{folder}/windows.jsonl")
    check(done.returncode == 0, done.stderr)
    windows = {e["name"]: e for e in lines_of(f"{folder}/windows.jsonl")}
    check(len(windows) == 8 and all(len(e["score"]) == 40 for e in windows.values()), f"{len(windows)}")
    service = Service()
    check(ask(folder, "windows.jsonl", "answers.jsonl", service).returncode == 0, "ask.py")
    service.close()
    done = run("--answers", f"{folder}/answers.jsonl")
    check(done.returncode == 0 and "what a language model says" in done.stdout, done.stderr)
    with open(f"{folder}/interp/experts.json") as file:
        layers = json.load(file)["layers"]
    for answer in lines_of(f"{folder}/answers.jsonl"):
        layer, expert = map(int, answer["name"].split("/"))
        found = layers[layer]["experts"][expert]["language"]
        kind = chr(int(answer["hypothesis"].split()[-1]))
        says = [int(any(kind in t for t in marked(p))) for p in windows[answer["name"]]["score"]]
        check(answer["answers"] == says and found["hypothesis"] == answer["hypothesis"], answer["name"])
        own = found["own"]
        yes = own["sensitivity"] * 20 + (1 - own["specificity"]) * 20
        check(abs(yes - sum(says)) < 1e-3 and found["unread"] == 0, f"{answer['name']}: {own}, {sum(says)}")
    done = run("--answers", f"{folder}/answers.jsonl", "--seed", "2")
    check(done.returncode == 1 and "other windows" in done.stderr and done.stderr.count("moex: ") == 1, done.stderr)


def main():
    if len(sys.argv) != 2 or not os.path.exists(f"{sys.argv[1]}/experts"):
        print("moex: usage: test_ask.py FOLDER, which holds experts", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        check_faults(folder)
        check_whole(folder, os.path.abspath(f"{sys.argv[1]}/experts"))
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
