"""What an operator changes about where records lie while nodes run: the number of buckets, and the cluster's secret.

Announcing, moving and settling are the product's (``store/relayout.py``); the thread that carries them out is told a
second time, in fake time. It lives on one of the nodes, and where that dies the operator asks another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everwall.limits import LAYOUT_LEASE_NS, LAYOUT_NOTICE_S, STORE_PREFIX_DEFAULT
from everwall.session import record
from everwall.sim.loop import MS, SECOND
from everwall.sim.node import Node
from everwall.sim.storage import Rows
from everwall.store.layout import Layout
from everwall.store.moving import move_bucket
from everwall.store.protocol import Command, ErrorReply
from everwall.store.relayout import announce, open_epoch, settle

if TYPE_CHECKING:
    from everwall.sim.cluster import Cluster

OLD, NEW = (
    b"a secret that every node of a simulated cluster knows",
    b"the one that takes its place while nodes are running",
)
STEPS = [record.derive_keys(*secrets) for secrets in ((OLD,), (OLD, NEW), (NEW, OLD), (NEW,))]
"""The keys of a node after each step of a rotation."""
_PAUSE = 20 * MS
"""Between two buckets that are looked through."""
_LOOK = 500 * MS
"""How often an operator looks whether a step is over, and a thread tries again what failed."""


class Operator:
    """Carries the changes of a plan out on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.done: list[str] = []
        """Changes that are over."""
        self._cluster = cluster
        self._loop = cluster.loop
        self._told: dict[str, int] = {}
        """The step that stands in the configuration of each node."""
        self._node: Node | None = None
        """Who carries the change of the number of buckets out."""

    def begin(self) -> None:
        """Plan all changes of the run."""
        plan = self._cluster.plan
        if plan.rotation is not None:
            self._loop.at(plan.rotation.at, self._take_step, 1)
        if plan.relayout is not None:
            self._loop.at(plan.relayout.at, self._announce)

    # The secret ----------------------------------------------------------------------------------------------

    def keys_of(self, name: str) -> Rows:
        """The keys with which a node starts now."""
        return STEPS[self._told.get(name, 0)]

    def _take_step(self, step: int) -> None:
        rotation = self._cluster.plan.rotation
        assert rotation is not None
        if step > rotation.steps:
            self.done.append("rotation")
            return
        self._cluster.tell(f"step {step} of the rotation")
        names = list(self._cluster.current)
        for number, name in enumerate(names):
            self._loop.after(number * rotation.apart, self._tell, name, step)
        self._loop.after(len(names) * rotation.apart + _LOOK, self._see_whether_over, step)

    def _tell(self, name: str, step: int) -> None:
        self._told[name] = step
        node = self._cluster.current[name]
        if node.alive:
            node.link.use_keys(STEPS[step])  # a node that hangs does it when it goes on

    def _see_whether_over(self, step: int) -> None:
        """Every node says that it uses the secrets of this step, and that its sessions are written with them."""
        living = [node for node in self._cluster.current.values() if node.alive]
        if all(not node.hung and node.link.keys is STEPS[step] and node.is_whole for node in living):
            self._take_step(step + 1)
        else:
            self._loop.after(_LOOK, self._see_whether_over, step)

    # The number of buckets -----------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Ask a node that is well to begin, or to go on with what another has begun."""
        relayout = self._cluster.plan.relayout
        assert relayout is not None
        self._node = next(node for node in self._cluster.current.values() if node.alive)
        try:
            layout = announce(self._ask, STORE_PREFIX_DEFAULT, relayout.buckets)
        except (ErrorReply, ConnectionError):
            self._loop.after(_LOOK, self._announce)
            return
        except ValueError:
            return  # the change was over when its node died
        self._cluster.tell(f"{self._node.name} begins to change the number of buckets: {layout}")
        self._on(LAYOUT_NOTICE_S * SECOND if layout.is_announced else 0, self._open, layout)

    def _ask(self, command: Command, at: bytes) -> Any:
        server, node = self._cluster.server, self._node
        assert node is not None
        if server.hung or server.refusing or node.hung or node.name in server.unreachable:
            raise ConnectionError
        reply = server.execute([command])[0]
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    def _open(self, layout: Layout) -> None:
        """The notice is over."""
        try:
            layout = open_epoch(self._ask, STORE_PREFIX_DEFAULT, layout)
        except (ErrorReply, ConnectionError):
            self._on(_LOOK, self._open, layout)
        else:
            self._on(LAYOUT_LEASE_NS + SECOND, self._move, layout, 0)

    def _move(self, layout: Layout, bucket: int) -> None:
        assert layout.former is not None
        try:
            if bucket < layout.former.buckets:
                move_bucket(self._ask, STORE_PREFIX_DEFAULT, layout, bucket)
                self._on(_PAUSE, self._move, layout, bucket + 1)
                return
            layout = settle(self._ask, STORE_PREFIX_DEFAULT, layout)
        except (ErrorReply, ConnectionError):
            self._on(_LOOK, self._move, layout, bucket)
            return
        if layout.former is None:
            self._cluster.tell("the number of buckets has changed")
            self.done.append("buckets")
        else:
            self._announce()  # a store that was emptied was told of an earlier step

    def _on(self, delay: int, action: Any, *arguments: Any) -> None:
        """Go on after a while, if the node lives by then; else the operator notices after a longer one."""
        self._loop.after(delay, self._go_on, action, arguments)

    def _go_on(self, action: Any, arguments: tuple[Any, ...]) -> None:
        relayout = self._cluster.plan.relayout
        assert relayout is not None
        assert self._node is not None
        if self._node.alive:
            action(*arguments)
        else:
            self._cluster.tell("nobody changes the number of buckets any more")
            self._loop.after(relayout.watched, self._announce)
