"""relevance.onnx of one model: a session for all of its runners, opened at the start or for the first who asks.

ONNX Runtime lets several threads run one session at once. What cannot be opened is not tried again: whoever asks is
told, and the log has the reason.
"""

import asyncio
import contextlib
import functools
import logging
import math
import threading

import onnxruntime

from saccade.api import Plan
from saccade.bundle import Bundle
from saccade.errors import BundleError, RelevanceFailed, SettingsError
from saccade.golden import check_golden_maps
from saccade.manifest import GradientMaps, Manifest
from service.batcher import RUNNER
from service.memory import refusal_of_relevance
from service.placement import CPU
from service.plan import stand_back
from service.postprocess import Head
from service.session import (
    CLASS_INDEX,
    Floats,
    Indices,
    Shapes,
    check_interface,
    inputs_of,
    open_session,
    output_shapes,
    run_golden,
    switches_of,
)

log = logging.getLogger("saccade.relevance")

_FEW_WEIGHTS = 4 * 2**20
"""Bytes of a weights file of which a second copy does not matter. On a GPU there is one in any case."""
_FLOAT = 4
"""Bytes."""
SHARED = {"session.disable_prepacking": "1"}
_FOLDED = ("ConstantFolding",)
_COPIED = ("ConvBNFusion", "NchwcTransformer")
"""Optimizers that make weights of their own of those in the file. Without them they are read where the system has
mapped it, as the sessions of model.onnx leave them in memory as well. The last two are worth a fifth of the time of a
net of convolutions (and nothing to others): where weights are few they stay."""


class Relevance:
    """Not yet open at first. `opened` is of one event loop; `session` may be had in any thread."""

    def __init__(self, bundle: Bundle, maps: GradientMaps, providers: tuple[str, ...], plan: Plan, head: Head | None):
        self._bundle = bundle
        self._providers = providers
        self._plan = plan
        self._shapes: Shapes = {
            **output_shapes(bundle.manifest, head),
            **dict.fromkeys(maps.names, (None, maps.grid[0] * maps.grid[1])),
        }
        self._options = onnxruntime.RunOptions()
        """Of the golden run."""
        self._session: onnxruntime.InferenceSession | None = None
        self._opening: asyncio.Future[None] | None = None
        self.failed = False
        """It could not be opened, and will not be."""

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """Once it is open."""
        assert self._session is not None
        return self._session

    def open(self) -> None:
        """Opens it, unless it is open, and holds it to the manifest and to golden.npz on the provider in use. Raises
        BundleError, SettingsError.
        """
        if self._session is not None:
            return
        manifest, plan = self._bundle.manifest, self._plan
        refusal = refusal_of_relevance(plan.memory_limit, manifest.id, _of_attention(manifest, plan))
        if refusal is not None:
            raise SettingsError(refusal)
        session = open_session(
            manifest,
            self._bundle.relevance,
            self._providers,
            plan.intra_op_threads,
            plan.spinning,
            entries=SHARED,
            warnings=False,  # one for each node that an If keeps it from taking away
            without=left_out(self._bundle, plan.provider),
        )
        check_interface(manifest, session, _inputs(manifest), self._shapes)
        check_golden_maps(manifest, self._bundle.golden, plan.provider, functools.partial(self._run_golden, session))
        self._session = session
        log.info("%s answers maps of the gradient: %s is open", manifest.id, self._bundle.relevance.name)

    async def opened(self) -> None:
        """Returns once it is open: the first who asks has it opened, the others wait for that. Raises RelevanceFailed.

        Who gives up waiting stops nothing: it is open for the next.
        """
        if self._session is None:
            if self._opening is None:
                loop = asyncio.get_running_loop()
                self._opening = loop.create_future()
                # of the name of those that run: should it hang, the process ends without it
                threading.Thread(target=self._open_for, args=(loop, self._opening), name=RUNNER, daemon=True).start()
            await asyncio.shield(self._opening)
        if self.failed:
            raise RelevanceFailed(
                f"relevance.onnx of {self._bundle.manifest.id} could not be opened: the service's log says why"
            )

    def close(self) -> None:
        """Ends a golden run that goes on."""
        self._options.terminate = True

    def _open_for(self, loop: asyncio.AbstractEventLoop, opening: "asyncio.Future[None]") -> None:
        stand_back()
        try:
            self.open()
        except (BundleError, SettingsError) as error:
            self.failed = True
            closing = self._options.terminate  # ends the golden run, which is no fault then
            level = logging.INFO if closing else logging.ERROR
            log.log(level, "%s answers no maps of the gradient: %s", self._bundle.manifest.id, error)
        except BaseException:
            self.failed = True
            log.exception("%s answers no maps of the gradient", self._bundle.manifest.id)
        with contextlib.suppress(RuntimeError):  # the event loop has closed meanwhile
            loop.call_soon_threadsafe(opening.set_result, None)

    def _run_golden(
        self, session: onnxruntime.InferenceSession, pixels: Floats, class_index: Indices
    ) -> dict[str, Floats]:
        names, manifest = list(self._shapes), self._bundle.manifest
        feed = {"pixel_values": pixels, CLASS_INDEX: class_index, **switches_of(manifest, names)}
        return run_golden(
            manifest,
            self._shapes,
            lambda: dict(zip(names, session.run(names, feed, self._options), strict=True)),
        )


def left_out(bundle: Bundle, provider: str) -> tuple[str, ...]:
    """The optimizers that its session does without."""
    copies = provider != CPU or bundle.weights.stat().st_size <= _FEW_WEIGHTS
    return _FOLDED if copies else (*_FOLDED, *_COPIED)


def _of_attention(manifest: Manifest, plan: Plan) -> int:
    """Bytes of attention in a full batch, and of its gradient for a class of each image: what a run takes at least."""
    return 2 * plan.max_batch * sum(_FLOAT * math.prod(layer.shape) for layer in manifest.attention)


def _inputs(manifest: Manifest) -> dict[str, tuple[str, list[int | str]]]:
    switches: dict[str, tuple[str, list[int | str]]] = dict.fromkeys(switches_of(manifest, ()), ("tensor(bool)", []))
    return {**inputs_of(manifest), CLASS_INDEX: ("tensor(int64)", ["batch", "k"]), **switches}
