"""Three replicas on two Ray nodes of this machine under load, while servers, a replica and a node are killed: no part of `cargo test`.

    test.sh [SECONDS [STREAMS]]        makes what this needs and runs it

What must hold, and is asserted: each request that had not begun to stream is answered, each that had begun ends with an error event that
says so, no answer differs from a single server's, the replicas come back, one that is taken away loses nothing, and nothing is left
behind: no sequence, no page of the KV cache, no open descriptor, no process.
"""

import asyncio
import collections
import json
import logging
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import aiohttp
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster

from qernel_serve import error_event, routing_key

HERE = pathlib.Path(__file__).resolve().parent
BINARY = os.environ["QERNEL"]
SUBJECTS = ["the sea", "a forest", "the moon", "rain", "a mountain", "snow", "the harbour", "a garden", "the night", "autumn", "a river", "the wind"]
WORDS = ["forty-two", "stone", "light"]
REPLICAS = 3
PATIENCE_S = 600


def bodies() -> list[dict]:
    """The requests: with a seed, so that a server's answer is always the same."""
    texts = [f"Write a haiku about {subject} with the word {word}" for subject in SUBJECTS for word in WORDS]
    return [{"model": "haiku", "messages": [{"role": "user", "content": text}], "seed": seed, "temperature": 0.7, "max_tokens": 48,
             "ignore_eos": True, "stream": True} for seed, text in enumerate(texts)]


async def ask(session: aiohttp.ClientSession, base: str, body: dict) -> tuple[str, str]:
    """What became of a stream, and its text: `answered`, `lost` (with the error that says so), `cut`, or what was refused before it began."""
    text, ended = "", "cut"
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                return f"status {response.status}", await response.text()
            async for line in response.content:
                line = line.decode().strip()
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    ended = "answered"
                elif "error" in (event := json.loads(data)):
                    ended = "lost" if event["error"]["code"] == "replica_lost" else f"error {event}"
                else:
                    text += event["choices"][0]["delta"].get("content") or ""
    except aiohttp.ClientError as error:
        return ("cut" if text else "no answer"), f"{type(error).__name__}: {error}"
    return ended, text


def client(limit: int = 0) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit, force_close=True), timeout=aiohttp.ClientTimeout(total=None))


async def expected(requests: list[dict]) -> list[str]:
    """A single server's answers."""
    server = subprocess.Popen([BINARY, "serve", "--port", "0", "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    try:
        base = next(line.split("listening on ")[1].strip() for line in server.stderr if "listening on " in line)
        async with client() as session:
            while True:
                async with session.get(f"{base}/health") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.05)
            answers = [await ask(session, base, body) for body in requests]
    finally:
        server.kill()
        server.wait()
    assert all(ended == "answered" and text for ended, text in answers), answers
    return [text for _, text in answers]


async def replicas() -> list[dict]:
    """Those that answer now. A handle reaches one at a time."""
    handle = serve.get_deployment_handle("engine", "qernel")
    found: dict[str, dict] = {}
    for place in range(24):
        try:
            told = await asyncio.wait_for(_describe(handle, f"place {place}"), 5)
        except (ray.exceptions.RayError, TimeoutError):
            continue
        found[told["replica"]] = told
    return list(found.values())


async def _describe(handle, session_id: str) -> dict:
    return await handle.options(session_id=session_id).describe.remote()


async def wait_for_replicas(without: set[str] = frozenset()) -> tuple[list[dict], float]:
    start, now = time.monotonic(), []
    while time.monotonic() - start < PATIENCE_S:
        engine = serve.status().applications["qernel"].deployments.get("engine")
        if engine is None or engine.replica_states.get("RUNNING", 0) < REPLICAS:
            await asyncio.sleep(0.5)
            continue
        now = [replica for replica in await replicas() if replica["replica"] not in without and is_alive(replica["server_pid"])]
        if len(now) >= REPLICAS:
            return now, time.monotonic() - start
        await asyncio.sleep(0.5)
    raise AssertionError(f"after {PATIENCE_S} s there are {len(now)} replicas: {now}")


async def metrics(session: aiohttp.ClientSession, replica: dict) -> dict[str, float]:
    async with session.get(f"{replica['address']}/metrics") as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


async def all_idle(session: aiohttp.ClientSession, now: list[dict]) -> None:
    names = ["qernel_requests_waiting", "qernel_requests_running", "qernel_kv_pages_used"]
    for _ in range(100):
        told = [await metrics(session, replica) for replica in now]
        if all(one[name] == 0 for one in told for name in names):
            return
        await asyncio.sleep(0.1)
    raise AssertionError([{name: one[name] for name in names} for one in told])


def is_alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def servers() -> list[int]:
    """Processes of the tested program."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "exe") == os.path.realpath(BINARY):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def footprint(pid: int) -> tuple[int, float]:
    """Open descriptors, and resident MiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return len(os.listdir(f"/proc/{pid}/fd")), int(resident.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deploy(cluster: Cluster, config: dict) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        subprocess.run([pathlib.Path(sys.executable).parent / "serve", "run", "--address", cluster.address, "--non-blocking", file.name],
                       check=True, timeout=300)


def configuration(port: int, replicas: int) -> dict:
    """That of one-host.yaml, for a machine without GPUs and so many replicas on two nodes."""
    config = yaml.safe_load((HERE / "one-host.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    application = config["applications"][0]
    application["args"] = {"binary": BINARY, "args": ["--max-num-sequences", "64"], "stream_interval_s": 0.1}
    engine, ingress = application["deployments"]
    del engine["autoscaling_config"]
    engine.update(num_replicas=replicas, max_replicas_per_node=2, health_check_period_s=2,
                  ray_actor_options={"num_cpus": 1, "num_gpus": 0, "runtime_env": {"env_vars": {"RAYON_NUM_THREADS": "1"}}})
    ingress["ray_actor_options"] = {"num_cpus": 0, "resources": {"front": 0.1}}
    return config


def keys_and_events() -> None:
    """What is routed together, and how each interface is told of a loss."""

    def key(**body) -> str | None:
        return routing_key(json.dumps(body).encode(), 16)

    system, first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the sea made of?"}
    later = [system, first, {"role": "assistant", "content": "Water."}, {"role": "user", "content": "And the sky?"}]
    assert key(messages=[system, first]) == key(messages=later, temperature=0)
    assert key(messages=[system, first]) != key(messages=[system, later[3]]), "a system message alone does not bind"
    assert key(messages=[first]) != key(messages=[system, first])
    assert key(messages=[first], system="Be brief.") == key(messages=later[1:], system="Be brief.") != key(messages=[first])
    assert key(prompt="a long beginning, and an end") == key(prompt="a long beginning, and another") != key(prompt="another")
    assert key(input="The sea", instructions="x") == key(input="The sea", instructions="x") != key(input="The sea")
    assert key(messages=[first], prompt_cache_key="a") == key(prompt="other", prompt_cache_key="a")
    assert key(prompt=[1, 2, 3]) and key(text="tokenised") is None and key(messages=[]) is None and key(messages=["no", 1]) is None
    assert routing_key(b"", 16) is None and routing_key(b"\xff{", 16) is None and routing_key(b"[1]", 16) is None

    def event(path: str, last: bytes = b"") -> dict:
        name, data = error_event(path, "gone", last).decode().strip().split("\n")
        assert name == "event: error"
        return json.loads(data.removeprefix("data: "))

    assert event("/v1/chat/completions")["error"]["code"] == "replica_lost"
    message = event("/v1/messages")
    assert (message["type"], message["error"]["type"]) == ("error", "api_error")
    answered = event("/v1/responses", b'data: {"sequence_number": 6}\n\ndata: {"sequence_number":7}\n\n')
    assert (answered["type"], answered["sequence_number"], answered["code"]) == ("error", 8, "replica_lost")


SAID: list[str] = []


def say(line: str) -> None:
    """Prints it, and once more at the end: Ray prints, too."""
    SAID.append(line)
    print(line, flush=True)


class Load:
    """Streams that are asked for anew until the time is over."""

    def __init__(self, base: str, requests: list[dict], texts: list[str]):
        self.base, self.requests, self.texts = base, requests, texts
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.open = 0
        self.slowest = 0.0

    async def stream(self, session: aiohttp.ClientSession, seed: int, until: float) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until:
            which, start = draw.randrange(len(self.requests)), time.monotonic()
            self.open += 1
            ended, text = await ask(session, self.base, self.requests[which])
            self.open -= 1
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.outcomes[ended] += 1
            whole = self.texts[which]
            if ended == "answered" and text != whole or ended == "lost" and not whole.startswith(text):
                self.wrong.append(f"{self.requests[which]['messages'][0]['content']}: expected {whole!r}, found {text!r}")
            elif ended not in ("answered", "lost"):
                self.wrong.append(f"{ended}: {text}")


async def measure(cluster: Cluster, second, port: int, seconds: float, streams: int) -> None:
    base = f"http://127.0.0.1:{port}"
    requests = bodies()
    texts = await expected(requests)
    first, took = await wait_for_replicas()
    nodes = collections.Counter(replica["node"] for replica in first)
    assert sorted(nodes.values()) == [1, 2], nodes
    say(f"three replicas on two nodes, ready after {took:.1f} s")
    async with client() as session:
        await same_prefix_same_replica(session, base, first)
        await a_client_that_leaves(session, base, first)
        ingress = front_pids()
        load = Load(base, requests, texts)
        start = time.monotonic()
        tasks = [asyncio.create_task(load.stream(session, seed, start + seconds)) for seed in range(streams)]

        async def at(share: float, what: str) -> None:
            await asyncio.sleep(max(0.0, start + share * seconds - time.monotonic()))
            say(f"{time.monotonic() - start:5.1f} s: {what}; {load.open} streams open, {dict(load.outcomes)} so far")

        head = [replica for replica in first if replica["node"] != second.node_id]
        await at(0.2, "kill -9 of a `qernel serve`")
        os.kill(head[0]["server_pid"], signal.SIGKILL)
        await at(0.4, "kill -9 of a replica")
        os.kill(head[1]["pid"], signal.SIGKILL)
        await at(0.6, "kill -9 of the second node's raylet")
        cluster.remove_node(second, allow_graceful=False)
        await at(0.7, "another node joins")
        third = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        await asyncio.gather(*tasks)
        took = time.monotonic() - start
        say(f"{took:5.1f} s: {sum(load.outcomes.values())} requests: {dict(load.outcomes)}; the slowest took {load.slowest:.1f} s")
        gone = {replica["replica"] for replica in first}
        now, waited = await wait_for_replicas(gone)
        say(f"three new replicas answer ({waited:.1f} s later)")
        assert third.node_id in {replica["node"] for replica in now}
        assert not load.wrong, "\n".join(load.wrong[:10])
        assert set(load.outcomes) == {"answered", "lost"}, load.outcomes
        # Each of three losses meets what its replica had under way, at most what it takes.
        assert 0 < load.outcomes["lost"] <= 3 * 64, load.outcomes

        again = await asyncio.gather(*(ask(session, base, body) for body in requests))
        assert again == [("answered", text) for text in texts], again
        await all_idle(session, now)
        for replica in first:
            assert not is_alive(replica["server_pid"]), f"{replica} is still there"
        assert sorted(servers()) == sorted(replica["server_pid"] for replica in now), (servers(), now)

        # What the same load takes a second time is kept for nothing.
        await asyncio.sleep(2)
        before = [footprint(pid) for pid in ingress]
        load, start = Load(base, requests, texts), time.monotonic()
        tasks = [asyncio.create_task(load.stream(session, seed, start + seconds / 2)) for seed in range(streams)]
        await asyncio.sleep(seconds / 8)
        # One fewer: it is drained, and loses nothing.
        await asyncio.to_thread(deploy, cluster, configuration(port, REPLICAS - 1))
        await asyncio.gather(*tasks)
        say(f"again for {time.monotonic() - start:.1f} s, a replica taken away, nothing killed: {dict(load.outcomes)}")
        assert set(load.outcomes) == {"answered"} and not load.wrong, (load.outcomes, load.wrong[:10])
        for _ in range(PATIENCE_S):
            if len(servers()) == REPLICAS - 1:
                break
            await asyncio.sleep(1)
        left = [replica for replica in now if is_alive(replica["server_pid"])]
        assert len(left) == REPLICAS - 1, left
        await all_idle(session, left)
        await asyncio.sleep(2)
        after = [footprint(pid) for pid in ingress]
        say(f"the ingress's descriptors and MiB: {before} before that, {after} after")
        for (files, resident), (files_now, resident_now) in zip(before, after):
            assert files_now <= files + 10 and resident_now <= resident + 25, (before, after)


def front_pids() -> list[int]:
    """The ingress's processes, by the names that Ray gives them."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica:qernel:ingress" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    assert found
    return found


async def same_prefix_same_replica(session: aiohttp.ClientSession, base: str, now: list[dict]) -> None:
    """Turns of a conversation meet the replica that has its pages; other conversations go elsewhere, too."""
    system = {"role": "system", "content": "You write haiku."}

    async def asked() -> list[float]:
        name = 'qernel_requests_finished_total{reason="length"}'
        return [(await metrics(session, replica)).get(name, 0) for replica in now]

    used = set()
    for subject in SUBJECTS:
        turns = [system, {"role": "user", "content": f"Write a haiku about {subject} with the word stone"}]
        earlier = await asked()
        for _ in range(4):
            body = {"model": "haiku", "messages": turns, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            async with session.post(f"{base}/v1/chat/completions", json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
            turns += [answer["choices"][0]["message"], {"role": "user", "content": "Another one"}]
        counts = [now - then for now, then in zip(await asked(), earlier)]
        assert sorted(counts) == [0] * (len(now) - 1) + [4], (subject, counts)
        used.add(counts.index(4))
    assert len(used) > 1, "all conversations went to one replica"
    say(f"{len(SUBJECTS)} conversations of four turns: each on one replica, {len(used)} replicas used")


async def a_client_that_leaves(session: aiohttp.ClientSession, base: str, now: list[dict]) -> None:
    """Its sequence ends, through all hops."""
    body = {**bodies()[0], "max_tokens": 400}

    async def cancelled() -> float:
        return sum([(await metrics(session, replica))["qernel_requests_cancelled_total"] for replica in now])

    earlier = await cancelled()
    async with session.post(f"{base}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.content.readline()
    for _ in range(100):
        if await cancelled() == earlier + 1:
            say("a client left in the middle: its sequence ended")
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{await cancelled()} sequences were cancelled, {earlier} before")


def main() -> None:
    seconds, streams = (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0), (int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    keys_and_events()
    # The raylets inherit where this module is, and that nobody is told of this.
    os.environ["PYTHONPATH"] = str(HERE)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray makes its workers nicer than others; on a busy machine a proxy may take its time all the same.
    os.environ["RAY_worker_niceness"] = "0"
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "60"
    assert not servers(), f"{BINARY} is running already; this test counts its processes"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    port, folder = free_port(), tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": REPLICAS, "resources": {"front": 1}, "object_store_memory": 80 << 20,
                                                            "include_dashboard": False, "temp_dir": folder.name})
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        deploy(cluster, configuration(port, REPLICAS))
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False, logging_level="warning")
        asyncio.run(measure(cluster, second, port, seconds, streams))
        serve.shutdown()
        for _ in range(100):
            if not servers():
                break
            time.sleep(0.1)
        assert not servers(), f"{servers()} are left behind"
        print("\n".join(["", *SAID, "passed"]))
    finally:
        ray.shutdown()
        cluster.shutdown()
        folder.cleanup()


if __name__ == "__main__":
    main()
