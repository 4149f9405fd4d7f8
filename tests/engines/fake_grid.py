"""A Flower Grid in one process, with real messages, a clock of its own, and every fault that a network has."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from seedtune.engines.frames import RECORD, parcel_of
from seedtune.engines.node import Node

LOSE = "lose"
"""A fault: the message never arrives."""


@dataclass
class FakeNode:
    """make: the node, made anew after a restart. faults: for its coming messages, one after another, `LOSE`, an error
    code of Flower, seconds that the answer takes, "twice", or a function that is called before the node answers."""

    make: Callable[[], Node]
    name: str
    is_online: bool = True
    faults: list = field(default_factory=list)
    node: Node | None = None
    num_answered: int = 0

    def restart(self) -> None:
        self.node = None

    def answers(self, plain: dict) -> dict:
        self.node = self.node or self.make()
        self.num_answered += 1
        return self.node.answers(parcel_of(plain)).plain()


class FakeGrid(Grid):
    """nodes: by id. now: its clock, which `sleep` moves on. on_sleep: called at every sleep, with the time."""

    def __init__(self, nodes: dict[int, FakeNode]):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes, self.now, self.on_sleep = nodes, 0.0, lambda now: None
        self._ids, self._replies = count(), []
        self.num_sent = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep(self.now)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=id_, name=node.name) for id_, node in self.nodes.items() if node.is_online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._pushed(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [(at, m) for at, m in self._replies if at <= self.now and m.metadata.reply_to_message_id in wanted]
        self._replies = [pair for pair in self._replies if not any(pair[1] is message for _, message in ready)]
        return [message for _, message in ready]

    def _pushed(self, message: Message) -> str | None:
        node = self.nodes[message.metadata.dst_node_id]
        if not node.is_online:
            return None
        self.num_sent += 1
        message.metadata.__dict__["_message_id"] = id_ = f"m{next(self._ids)}"
        fault = node.faults.pop(0) if node.faults else 0.0
        if fault == LOSE:
            return id_
        if callable(fault):
            fault()
            fault = 0.0
        if isinstance(fault, int):
            self._replies.append((self.now, Message(Error(fault, "as told"), reply_to=message)))
            return id_
        times = 2 if fault == "twice" else 1
        for _ in range(times):
            content = RecordDict({RECORD: ConfigRecord(node.answers(dict(message.content[RECORD])))})
            self._replies.append((self.now + (fault if times == 1 else 0.0), Message(content, reply_to=message)))
        return id_

    run = SimpleNamespace(run_id=1)

    def set_run(self, run) -> None: ...

    def create_message(self, *args, **options):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError
