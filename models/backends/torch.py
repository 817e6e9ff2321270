"""The PyTorch backend, on the processor.

Bit for bit the same for the same arguments and number of threads: the order of the samples comes from the
generator that is passed in, and so does what dropout draws. Processor kernels need no more than that;
`torch.use_deterministic_algorithms` would change process-wide state for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional

from models.arrays import Arrays, copied, require_like
from models.backends.loop import (
    Batch,
    GradientOutcome,
    LoopResult,
    Outcome,
    evaluate_loop,
    require_feedable,
    require_finite,
    train_loop,
)
from models.backends.plan import EvalResult, StepReport, TrainPlan, TrainResult
from models.backends.torch_randomness import DrewUnseen, TorchRandomness
from models.datasets import Dataset
from models.own_code import is_models_own
from models.registry import ModelSpec
from trellis.errors import InvalidInput, TrainingFailed
from trellis.seeds import generator


def open_model(
    spec: ModelSpec, *, shape: tuple[int, ...], classes: int, seed: int, threads: int | None = None
) -> TorchBackend:
    """Return the backend with the model built; see `models.backends.open_backend`."""
    if threads is not None:
        torch.set_num_threads(threads)
    module = build_module(spec, shape=shape, classes=classes, seed=seed)
    return TorchBackend(spec.name, module, shape, classes)


def build_module(spec: ModelSpec, *, shape: tuple[int, ...], classes: int, seed: int) -> torch.nn.Module:
    """Return the model's module with the weights that training starts from.

    Raises:
        InvalidInput: It cannot be built, has arrays that cannot be sent, or does not turn such samples into
            logits.
    """
    with TorchRandomness(_drawn_seed(generator(seed, "initial", spec.name))).drawn():
        with _users_failures_named(
            spec, f"cannot be built for samples of shape {shape} in {classes} classes"
        ):
            built: object = spec.build(shape, classes)
        module = _require_module(spec, built)
        _require_logits(spec, module, shape, classes)
    return module


class TorchBackend:
    """A `models.backends.DefiningBackend`; `module` holds the initial parameters and is never trained."""

    name = "torch"

    def __init__(self, model: str, module: torch.nn.Module, shape: tuple[int, ...], classes: int) -> None:
        self._model = model
        self._module = module
        self._shape = shape
        self._classes = classes

    def initial(self) -> Arrays:
        return copied(_views(self._module))

    def train(
        self,
        arrays: Arrays,
        data: Dataset,
        plan: TrainPlan,
        rng: np.random.Generator,
        *,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainResult:
        initial_loss = None
        if plan.report_initial_loss:
            initial_loss = self.evaluate(arrays, data, should_stop=should_stop).loss
        # A spawned stream, so that the order of samples is the same on runtimes without dropout.
        seed, order = _drawn_seed(rng.spawn(1)[0]), rng.bit_generator.state

        def attempt(*, used: bool | None) -> tuple[torch.nn.Module, LoopResult]:
            module, randomness = self._loaded(arrays, data), TorchRandomness(seed, used=used)
            module.train()
            trainable = {
                name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
            }
            rng.bit_generator.state = order
            return module, train_loop(
                {name: parameter.detach().numpy() for name, parameter in trainable.items()},
                data,
                plan,
                rng,
                lambda x, y: self._gradient(module, trainable, randomness, x, y),
                on_step=on_step,
                should_stop=should_stop,
            )

        try:
            module, result = attempt(used=None)
        except DrewUnseen:
            # Such as noise from the second step on: all again, and reported again.
            module, result = attempt(used=True)
        trained = copied(_views(module))
        require_finite(trained, model=self._model, steps=result.steps, plan=plan)
        return TrainResult(trained, len(data), result.loss, initial_loss, result.steps, result.accuracy)

    def evaluate(
        self,
        arrays: Arrays,
        data: Dataset,
        *,
        batch_size: int = 256,
        should_stop: Callable[[], bool] | None = None,
    ) -> EvalResult:
        module = self._loaded(arrays, data)
        module.eval()

        def score(x: Batch, y: Batch) -> Outcome:
            logits, labels = self._logits(module, x), torch.tensor(y)
            with self._failures_named():
                loss = functional.cross_entropy(logits, labels)
            return Outcome(loss.item(), _correct(logits, labels))

        return evaluate_loop(data, batch_size, score, should_stop=should_stop)

    def predictor(self, arrays: Arrays) -> Callable[[Batch], Batch]:
        module = self._holding(arrays)
        module.eval()

        def logits(x: Batch) -> Batch:
            return self._logits(module, x).numpy()

        return logits

    def _loaded(self, arrays: Arrays, data: Dataset) -> torch.nn.Module:
        """Return a module of its own that holds the arrays, once they and the data are found to fit."""
        module = self._holding(arrays)
        require_feedable(data, shape=self._shape, classes=self._classes)
        return module

    def _holding(self, arrays: Arrays) -> torch.nn.Module:
        require_like(arrays, _views(self._module))
        module = copy.deepcopy(self._module)
        # torch.tensor copies, so that nothing that is trained shares memory with what came.
        module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        return module

    def _logits(self, module: torch.nn.Module, x: Batch) -> torch.Tensor:
        with torch.no_grad(), self._failures_named():
            # Copied: x is the caller's memory, and a user's module may write to its input.
            logits: torch.Tensor = module(torch.tensor(x))
        return logits

    def _gradient(
        self,
        module: torch.nn.Module,
        trainable: dict[str, torch.nn.Parameter],
        randomness: TorchRandomness,
        x: Batch,
        y: Batch,
    ) -> GradientOutcome:
        labels = torch.from_numpy(y)
        with self._failures_named():
            module.zero_grad(set_to_none=True)
            with randomness.drawn():
                logits = module(torch.from_numpy(x))
            loss = functional.cross_entropy(logits, labels)
            torch.autograd.backward(loss)
        gradients = {name: part.grad.numpy() for name, part in trainable.items() if part.grad is not None}
        return GradientOutcome(loss.item(), _correct(logits, labels), gradients)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise TrainingFailed(f"model {self._model!r} failed in torch: {error}") from error


def _drawn_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63 - 1))


def _views(module: torch.nn.Module) -> Arrays:
    """Return the module's parameters and buffers by name, as views of their memory."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def _correct(logits: torch.Tensor, labels: torch.Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum().item())


def _require_module(spec: ModelSpec, built: object) -> torch.nn.Module:
    """Return what was built, if it is a module whose arrays can leave it: a user's build may do anything."""
    if not isinstance(built, torch.nn.Module):
        problem = f"its build gives a {type(built).__name__}, a torch.nn.Module is due"
        raise InvalidInput(f"model {spec.name!r}", problem)
    for name, tensor in built.state_dict().items():
        with _users_failures_named(spec, f"its array {name!r} cannot be sent"):
            tensor.detach().numpy()
    return built


def _require_logits(spec: ModelSpec, module: torch.nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Pass if the module turns two samples into two rows of logits: a user's model may do anything."""
    module.eval()
    with torch.no_grad(), _users_failures_named(spec, f"does not take samples of shape {shape}"):
        logits: object = module(torch.zeros(2, *shape))
    came = (
        f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    )
    if came != f"shape {(2, classes)}":
        problem = f"gives {came} for two samples of shape {shape}, {(2, classes)} is due"
        raise InvalidInput(f"model {spec.name!r}", problem)


@contextmanager
def _users_failures_named(spec: ModelSpec, problem: str) -> Iterator[None]:
    """Turn what a model's own code raises into InvalidInput, but for what this machine lacks."""
    try:
        yield
    except Exception as error:  # whatever a stranger's code raises
        if not is_models_own(error):
            raise
        what = f"{problem}: {type(error).__name__}: {error}"
        raise InvalidInput(f"model {spec.name!r}", what) from error
