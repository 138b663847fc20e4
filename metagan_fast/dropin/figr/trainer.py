"""FIGR's `train.py`: its trainer's methods, options and files on top of `MetaGAN`."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ... import checkpoint, functional
from ..._utils.draws import draws_from_seed
from ..._utils.pair import Pair
from ...executors import MetaGradient
from ...inner import InnerLoop
from ...learner import MetaGAN
from ...learner.algorithms import Reptile
from ...noise import Noise, NoiseShape, Stream, draw_noise, draw_sample_latents
from ...tasks import TaskBatch
from ...training.folder_lock import locked
from ...training.stop_request import stop_request
from ...training.trainer import Dispensable
from . import environments
from .functions import normalize_data, unnormalize_data
from .options import ENVIRONMENTS, NETWORKS, OPTIONS, read_options

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_EVENTS = "events for TensorBoard"


class Environment(Protocol):
    """Interface of the trainer's data sets."""

    channels: int
    height: int
    length: int

    def sample_training_task(self, batch_size: int) -> tuple[Tensor, str]:
        """Return images `[batch_size, channels, height, length]` in [0, 1] of one class, and its name."""

    def sample_validation_task(self, batch_size: int) -> tuple[Tensor, str]:
        """Return images of one held-out class, as `sample_training_task`."""


class FIGR:
    """Trainer of FIGR's GAN, with FIGR's options, methods, attributes and files; episodes run in the engine.

    An episode copies the initialisation `d`, `g` to `meta_d`, `meta_g`, adapts these to one class by SGD, and passes
    the difference to Adam. `Runs/<id_string>/` holds TensorBoard events, `checkpoint`, in FIGR's own format, and
    `state.safetensors`, from which a run resumes exactly.

    Args:
        args: options by name (`{"--dataset": "Omniglot"}`), as docopt returns them; missing ones have the defaults of
            `OPTIONS`.
        env: the data set; None: the one named by `--dataset`.
        device: device of the networks; None: CUDA if available, else the CPU, as in FIGR.
        executor: executor of the two `MetaGAN`s.

    Attributes:
        g, d: the initialisation.
        meta_g, meta_d: the adapted networks, separate modules.
        eps: number of the next episode, from 0.
        learner: the `MetaGAN` of `g` and `d`; it holds Adam's state.
        env, writer, id_string, z_shape: as in FIGR.

    Raises:
        ValueError: an option is unknown or invalid.
        FileNotFoundError: the data are missing; the message says how to get them.
    """

    z_shape = 100
    eps: int

    # Options, set by `load_args`
    inner_learning_rate: float
    outer_learning_rate: float
    batch_size: int
    inner_epochs: int
    height: int
    length: int
    dataset: str
    neural_network: str
    hidden_size: int
    blocks: int
    episodes: int
    validation_every: int
    seed: int

    def __init__(
        self,
        args: Mapping[str, Any],
        *,
        env: Environment | None = None,
        device: torch.device | str | None = None,
        executor: str = "auto",
    ) -> None:
        self.device = environments.device if device is None else torch.device(device)
        self.executor = executor
        self.load_args(args)
        self.id_string = self.get_id_string()
        if env is None:
            env = ENVIRONMENTS[self.dataset](self.height, self.length, seed=self.seed, device=self.device)
        self.env: Environment = env
        for name, side in (("--height", env.height), ("--length", env.length)):
            if side % 2**self.blocks:
                raise ValueError(f"{name}: expected a multiple of 2 ** blocks = {2**self.blocks}, got {side}")
        self._dispensable = Dispensable()
        self.initialize_gan()
        self.load_checkpoint()
        self.writer = self.make_writer()

    # Setup

    def load_args(self, args: Mapping[str, Any]) -> None:
        """Parse the options into attributes of the same names."""
        for name, value in read_options(args).items():
            setattr(self, name, value)

    def get_id_string(self) -> str:
        """Return the name of the run's folder: FIGR's, plus the network sizes if they differ from FIGR's."""
        sizes = self.hidden_size, self.blocks
        usual = tuple(int(OPTIONS[name].default) for name in ("--hidden_size", "--blocks"))
        return (
            f"{self.neural_network}_{self.dataset}_olr{self.outer_learning_rate}_ilr{self.inner_learning_rate}"
            f"_bsize{self.batch_size}_ie{self.inner_epochs}_h{self.height}_l{self.length}"
            + (f"_hs{sizes[0]}_b{sizes[1]}" if sizes != usual else "")
        )

    def initialize_gan(self) -> None:
        """Create the networks, with initial parameters drawn from the seed, and their learners."""
        with draws_from_seed(self.seed):
            self.g, self.d = self._make_networks()
            self.meta_g, self.meta_d = self._make_networks()
        self.learner = self._make_learner(self.g, self.d, "adam")
        self._adapting = self._make_learner(self.meta_g, self.meta_d, "sgd")  # stateless: it only adapts
        self.reset_meta_model()

    def _make_networks(self) -> tuple[nn.Module, nn.Module]:
        generator, discriminator = NETWORKS[self.neural_network]
        sizes = self.env.channels, self.env.height, self.env.length, self.hidden_size, self.blocks
        return generator(self.z_shape, *sizes).to(self.device), discriminator(*sizes).to(self.device)

    def _make_learner(self, generator: nn.Module, discriminator: nn.Module, optimizer: str) -> MetaGAN:
        return MetaGAN(
            generator,
            discriminator,
            latent_dim=self.z_shape,
            loss="figr",
            inner=InnerLoop(optimizer="sgd", lr=self.inner_learning_rate, steps=self.inner_epochs),
            meta=Reptile(optimizer=optimizer, lr=self.outer_learning_rate),
            executor=self.executor,
            seed=self.seed,
        )

    # Episodes

    def reset_meta_model(self) -> None:
        """Reset the adapted networks to the initialisation."""
        self.meta_g.train()
        self.meta_d.train()
        self.meta_d.load_state_dict(self.d.state_dict())
        self.meta_g.load_state_dict(self.g.state_dict())
        self._inner_steps = 0

    def inner_loop(self, real_batch: Tensor) -> tuple[float, float]:
        """Take one inner step: a discriminator update, then a generator update of the adapted networks.

        Args:
            real_batch: `[images, channels, height, length]` in [-1, 1].

        Returns:
            The losses of the discriminator (penalty included) and the generator, each before its update.
        """
        return self._adapt(real_batch, 1, Stream.TRAINING)

    def _adapt(self, real_batch: Tensor, steps: int, stream: Stream) -> tuple[float, float]:
        """Take `steps` inner steps; return the sums of their losses."""
        batch = TaskBatch(real_batch.unsqueeze(0))
        adapted = self._adapting.inner_loop(batch, self._noise(batch, steps, stream))
        self._inner_steps += steps
        with torch.no_grad():
            self._adapting.generator_parameters.copy_(adapted.generator[0])
            self._adapting.discriminator_parameters.copy_(adapted.discriminator[0])
        discriminator_loss, generator_loss = (
            adapted.history[name].sum().item() for name in ("loss_discriminator", "loss_generator")
        )
        return discriminator_loss, generator_loss

    def _noise(self, batch: TaskBatch, steps: int, stream: Stream) -> Noise:
        """Draw the noise of the next inner steps; it does not depend on how many are drawn at once."""
        done = self._inner_steps
        shape = NoiseShape(tasks=1, shots=batch.shots, latent_dim=self.z_shape, steps=done + steps)
        noise = draw_noise(
            shape,
            seed=self.seed,
            meta_step=self.learner.step,
            stream=stream,
            device=self.device,
            dtype=self._adapting.generator_parameters.dtype,
        )
        return Noise(**{name: drawn[done:] for name, drawn in noise.drawn().items()})

    def _run_inner_loop(self, real_batch: Tensor, stream: Stream) -> tuple[float, float]:
        if type(self).inner_loop is FIGR.inner_loop:
            return self._adapt(real_batch, self.inner_epochs, stream)
        steps = [self.inner_loop(real_batch) for _ in range(self.inner_epochs)]  # a subclass overrides the step
        return sum(loss for loss, _ in steps), sum(loss for _, loss in steps)

    def meta_training_loop(self) -> None:
        """Adapt to a training task and pass the Reptile gradient (initial minus adapted) to Adam."""
        data, _ = self.env.sample_training_task(self.batch_size)
        real_batch = normalize_data(data.clone()).to(self.device)
        discriminator_loss, generator_loss = self._run_inner_loop(real_batch, Stream.TRAINING)
        with self._dispensable(_EVENTS):
            self.writer.add_scalar("Training_discriminator_loss", discriminator_loss, self.eps)
            self.writer.add_scalar("Training_generator_loss", generator_loss, self.eps)
        initial, adapted = (
            Pair(learner.generator_parameters, learner.discriminator_parameters)
            for learner in (self.learner, self._adapting)
        )
        rows = adapted.map(lambda params: params.unsqueeze(0))
        self.learner.apply(MetaGradient(*initial.map(functional.reptile_gradient, rows)))

    def validation_run(self) -> None:
        """Adapt to a held-out task; log the losses, and a grid of its images above three rows of generated ones."""
        data, _ = self.env.sample_validation_task(self.batch_size)
        real_batch = normalize_data(data.clone()).to(self.device)
        discriminator_loss, generator_loss = self._run_inner_loop(real_batch, Stream.ADAPTATION)
        self.meta_g.eval()
        latents = draw_sample_latents(
            1, 3 * self.batch_size, self.z_shape, seed=(self.seed + self.eps) % 2**64, device=self.device
        )
        with torch.no_grad():
            generated = unnormalize_data(self.meta_g(latents[0]))
        rows = torch.cat([data.to(generated)[:, None], generated.unflatten(0, (-1, 3))], 1)
        grid = rows.permute(2, 1, 3, 0, 4).flatten(3).flatten(1, 2)  # [C, rows x height, images x length]
        with self._dispensable(_EVENTS):
            self.writer.add_image("Validation_generated", grid.cpu().numpy(), self.eps)
            self.writer.add_scalar("Validation_discriminator_loss", discriminator_loss, self.eps)
            self.writer.add_scalar("Validation_generator_loss", generator_loss, self.eps)

    def training(self) -> None:
        """Run the remaining episodes; validate and save at the options' intervals, and save after the last one.

        Ctrl-C (or SIGTERM, SIGHUP) stops after the running episode; a second Ctrl-C ends the process at once. Before
        any exception propagates, the result of the last complete episode is saved.

        Raises:
            BlockingIOError: another process is training in the run's folder.
        """
        message = "stopping after this episode; Ctrl-C again to exit at once"
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder), stop_request(lambda: logger.warning(message)) as stop:
            stopping = False
            while self.eps < self.episodes and not stopping:
                with self._saved_on_errors():
                    self.reset_meta_model()
                    self.meta_training_loop()
                    validates = self.eps % self.validation_every == 0
                    if validates:
                        self.reset_meta_model()
                        self.validation_run()
                    stopping = stop.is_set()
                    if validates or stopping or self.eps == self.episodes - 1:
                        self.checkpoint_model()
                self.eps += 1
        with self._dispensable(_EVENTS):
            self.writer.flush()

    @contextlib.contextmanager
    def _saved_on_errors(self) -> Iterator[None]:
        """Save the state after the last completed update before an exception propagates."""
        env = self.env if isinstance(self.env, environments.MetaEnv) else None
        before = None if env is None else env.state()
        try:
            yield
        except BaseException as error:
            if self.learner.step == self.eps and env is not None and before is not None:
                env.load_state(before)  # the resumed run draws the episode's tasks again
            self.eps = self.learner.step - 1
            try:
                if self.eps >= 0:
                    self.checkpoint_model()
            except Exception as second:
                logger.warning("%s ends training; its state cannot be saved: %s", type(error).__name__, second)
            finally:
                self.eps = self.learner.step
            raise

    # Files

    @property
    def _folder(self) -> Path:
        return Path("Runs") / self.id_string

    def make_writer(self) -> SummaryWriter:
        """Return TensorBoard's writer; a resumed run purges the events that it will write again."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(str(self._folder), purge_step=self.eps or None)

    def checkpoint_model(self) -> None:
        """Write FIGR's `checkpoint`, and `state.safetensors` with the optimizer's state, each atomically.

        Raises:
            CheckpointError: a file cannot be written; the previous one is kept.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors, metadata = self.learner.state()
        env = self.env.state() if isinstance(self.env, environments.MetaEnv) else None
        checkpoint.write(self._folder / "state.safetensors", tensors, metadata | {"env": env})
        file = io.BytesIO()
        torch.save({"discriminator": _on_cpu(self.d), "generator": _on_cpu(self.g), "episode": self.eps}, file)
        checkpoint.write_bytes(self._folder / "checkpoint", file.getvalue())

    def load_checkpoint(self) -> None:
        """Resume from the run's `checkpoint`, if there is one, at the episode after it.

        Adam's state is read from `state.safetensors` if that holds the same networks; otherwise, as beside a checkpoint
        written by FIGR, Adam starts afresh.

        Raises:
            ValueError: the checkpoint cannot be read, or belongs to other networks.
        """
        self.eps = 0
        path = self._folder / "checkpoint"
        if not path.is_file():
            if (self._folder / "state.safetensors").exists():
                checkpoint.read(self._folder / "state.safetensors")  # refuse another program's file
            return
        saved = _read_checkpoint(path)
        state = self._read_state(saved)
        if state is None:
            try:
                self.d.load_state_dict(saved["discriminator"])
                self.g.load_state_dict(saved["generator"])
            except RuntimeError as error:
                raise ValueError(f"{path} is of other networks than {self.neural_network}'s here: {error}") from error
            self.learner.step = int(saved["episode"]) + 1
            logger.warning("%s: no optimizer state of these networks beside it, Adam starts afresh", path)
        else:
            tensors, metadata = state
            self.learner.load_state(tensors, metadata)
            if metadata["env"] is not None and isinstance(self.env, environments.MetaEnv):
                self.env.load_state(metadata["env"])
        self.eps = self.learner.step

    def _read_state(self, saved: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state beside a checkpoint if it holds the same networks, else None."""
        path = self._folder / "state.safetensors"
        if not path.is_file():
            return None
        tensors, metadata = checkpoint.read(path)
        same = all(
            f"{role}.{name}" in tensors and torch.equal(tensors[f"{role}.{name}"], value)
            for role in ("generator", "discriminator")
            for name, value in saved[role].items()
        )
        return (tensors, metadata) if same else None


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    """Copy a state dict to the CPU, each tensor in its own memory rather than in the shared flat buffer."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        _ = saved["discriminator"], saved["generator"], saved["episode"]
    except Exception as error:  # unpickling may raise anything
        raise ValueError(
            f"cannot read {path}: {error}; expected FIGR's dictionary of discriminator, generator and episode"
        ) from error
    return saved
