"""FIGR's `train.py`: the trainer with its methods, options and files, on the engine of `MetaGAN`."""

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
from ...executors import MetaGradient
from ...inner import InnerLoop
from ...learner import MetaGAN
from ...learner.algorithms import Reptile
from ...noise import Noise, NoiseShape, Stream, draw_noise, draw_sample_latents
from ...tasks import TaskBatch
from ...training.run_folder import locked
from ...training.trainer import Dispensable, stop_request
from . import environments
from .functions import normalize_data, unnormalize_data
from .options import ENVIRONMENTS, NETWORKS, OPTIONS, read_options

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_EVENTS = "events for TensorBoard"


class Environment(Protocol):
    """What the trainer asks of a data set; one of your own needs no more."""

    channels: int
    height: int
    length: int

    def sample_training_task(self, batch_size: int) -> tuple[Tensor, str]:
        """Return images `[batch_size, channels, height, length]` in [0, 1] of one class, and its name."""

    def sample_validation_task(self, batch_size: int) -> tuple[Tensor, str]:
        """Return images of one class that is held out."""


class FIGR:
    """Meta-train FIGR's GAN: its options, methods, attributes and files, its episodes in the engine.

    An episode copies the initialisation `d`, `g` to `meta_d`, `meta_g`, adapts these to one class by SGD, and hands the
    difference to Adam. `Runs/<id_string>/` holds TensorBoard events, `checkpoint`, which FIGR reads and writes too, and
    `state.safetensors`, with which a run goes on exactly.

    Args:
        args: options by name (`{"--dataset": "Omniglot"}`), as docopt returns them; those left out have `OPTIONS`'
            defaults.
        env: the data; None: what `--dataset` names.
        device: where to compute; None: CUDA where there is a device, else the CPU, as FIGR.
        executor: of the two `MetaGAN`s.

    Attributes:
        g, d: the initialisation. meta_g, meta_d: the adapted networks, in modules of their own.
        eps: the number of the episode that comes next, from 0.
        learner: the `MetaGAN` of `g` and `d`, which holds Adam's state.
        env, writer, id_string, z_shape: as in FIGR.

    Raises:
        ValueError: an option that is unknown or makes no sense.
        FileNotFoundError: the data are not there; the message says what to do.
    """

    z_shape = 100
    eps: int

    # the options
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

    # Setting up

    def load_args(self, args: Mapping[str, Any]) -> None:
        """Read the options into attributes of their names."""
        for name, value in read_options(args).items():
            setattr(self, name, value)

    def get_id_string(self) -> str:
        """Return the name of the run's folder, FIGR's; networks of other sizes than FIGR's add theirs."""
        sizes = self.hidden_size, self.blocks
        usual = tuple(int(OPTIONS[name].default) for name in ("--hidden_size", "--blocks"))
        return (
            f"{self.neural_network}_{self.dataset}_olr{self.outer_learning_rate}_ilr{self.inner_learning_rate}"
            f"_bsize{self.batch_size}_ie{self.inner_epochs}_h{self.height}_l{self.length}"
            + (f"_hs{sizes[0]}_b{sizes[1]}" if sizes != usual else "")
        )

    def initialize_gan(self) -> None:
        """Make the networks, first parameters drawn from the seed, and their learners; nothing is trained yet."""
        with draws_from_seed(self.seed):
            self.g, self.d = self._make_networks()
            self.meta_g, self.meta_d = self._make_networks()
        self.learner = self._make_learner(self.g, self.d, "adam")
        self._adapting = self._make_learner(self.meta_g, self.meta_d, "sgd")  # without state: it only adapts
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

    # An episode

    def reset_meta_model(self) -> None:
        """Set the adapted networks back to the initialisation."""
        self.meta_g.train()
        self.meta_d.train()
        self.meta_d.load_state_dict(self.d.state_dict())
        self.meta_g.load_state_dict(self.g.state_dict())
        self._inner_steps = 0

    def inner_loop(self, real_batch: Tensor) -> tuple[float, float]:
        """Take one inner step of the adapted networks: a discriminator update, then one of the generator.

        Args:
            real_batch: `[images, channels, height, length]` in [-1, 1].

        Returns:
            The losses of discriminator, penalty included, and generator, each before its update.
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
        """Draw for the next inner steps: so many at once or one after another, the noise is the same."""
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
        steps = [self.inner_loop(real_batch) for _ in range(self.inner_epochs)]  # a subclass has a step of its own
        return sum(loss for loss, _ in steps), sum(loss for _, loss in steps)

    def meta_training_loop(self) -> None:
        """Adapt to a training task and hand the initialisation's difference from that to Adam."""
        data, _ = self.env.sample_training_task(self.batch_size)
        real_batch = normalize_data(data.clone()).to(self.device)
        discriminator_loss, generator_loss = self._run_inner_loop(real_batch, Stream.TRAINING)
        with self._dispensable(_EVENTS):
            self.writer.add_scalar("Training_discriminator_loss", discriminator_loss, self.eps)
            self.writer.add_scalar("Training_generator_loss", generator_loss, self.eps)
        learners = self.learner, self._adapting
        generator, discriminator = (
            functional.reptile_gradient(initial, adapted.unsqueeze(0))
            for initial, adapted in (
                [learner.generator_parameters for learner in learners],
                [learner.discriminator_parameters for learner in learners],
            )
        )
        self.learner.apply(MetaGradient(generator, discriminator))

    def validation_run(self) -> None:
        """Adapt to a held-out task; write the losses, and its images above three rows of generated ones."""
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
        """Run the episodes that are left; validate and save as often as the options say, and save after the last.

        Ctrl-C (or SIGTERM, SIGHUP) makes the running episode the last, a second Ctrl-C ends the process at once. Any
        exception first saves what the last complete episode ended with.

        Raises:
            BlockingIOError: another process trains in the run's folder.
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
        """Save before an exception ends an episode: with the update that it made, or as the one before ended."""
        env = self.env if isinstance(self.env, environments.MetaEnv) else None
        before = None if env is None else env.state()
        try:
            yield
        except BaseException as error:
            if self.learner.step == self.eps and env is not None and before is not None:
                env.load_state(before)  # the episode's tasks are drawn again
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
        """Return what takes scalars and images: TensorBoard's writer; a resumed run hides what it will write again."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(str(self._folder), purge_step=self.eps or None)

    def checkpoint_model(self) -> None:
        """Write FIGR's `checkpoint`, and beside it `state.safetensors` with the optimizer's state; each atomically.

        Raises:
            CheckpointError: a file cannot be written; the one before stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors, metadata = self.learner.state()
        env = self.env.state() if isinstance(self.env, environments.MetaEnv) else None
        checkpoint.write(self._folder / "state.safetensors", tensors, metadata | {"env": env})
        file = io.BytesIO()
        torch.save({"discriminator": _on_cpu(self.d), "generator": _on_cpu(self.g), "episode": self.eps}, file)
        checkpoint.write_bytes(self._folder / "checkpoint", file.getvalue())

    def load_checkpoint(self) -> None:
        """Go on from the run's `checkpoint`, if there is one, at the episode after its own.

        Adam's state comes from `state.safetensors`, where that has the same networks; where it has not, as beside a
        checkpoint that FIGR wrote, Adam starts afresh.

        Raises:
            ValueError: the checkpoint cannot be read, or is of other networks.
        """
        self.eps = 0
        path = self._folder / "checkpoint"
        if not path.is_file():
            if (self._folder / "state.safetensors").exists():
                checkpoint.read(self._folder / "state.safetensors")  # another program's is refused, not replaced
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
        """Return what lies beside a checkpoint if it has the same networks."""
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
    """Return a state dict whose tensors own their memory: those of a network are views of one buffer."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        _ = saved["discriminator"], saved["generator"], saved["episode"]
    except Exception as error:  # whatever pickle may raise
        raise ValueError(
            f"cannot read {path}: {error}; expected FIGR's dictionary of discriminator, generator and episode"
        ) from error
    return saved
