"""What `evaluate` is pointed at: the pictures to measure, and those to compare them with."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.build import build_training, build_validation, pick_device
from tinydiffusion.config import ConfigError, plugin
from tinydiffusion.evaluation.folder import FolderPictures
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.sources import DatasetPictures, ModelPictures, Pictures
from tinydiffusion.evaluation.statistics_file import StatisticsFile
from tinydiffusion.evaluation.target import Target, model_context, reference_pictures
from tinydiffusion.layers.precision import Precision
from tinydiffusion.model_folder.finding import find_model
from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.views import view_of
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import SOURCES, Dataset
from tinydiffusion.registry import suggest
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.runtime.parts import WHOLE, Shard
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.sampling.job import make_samples
from tinydiffusion.survey import evaluation_prompts
from tinydiffusion.without_effect import EVALUATE, Evaluated, idle

NUM_IMAGES = 512
TEXT = "text"  # the column of captions where no other is named
MAX_REFERENCE = 10**8


@dataclass(frozen=True)
class Request:
    """The settings that are given on the command line."""

    target: Path
    metrics: list[str]
    options: dict[str, dict[str, Any]]
    data: str | None
    train: str | None
    caption_column: str | None
    captions: str  # see read_folder
    assume_extractor: str | None
    num_images: int | None
    prompts: list[str]  # read from a file; empty where there is none
    resize: int | list[int] | None
    guidance_scales: list[float]
    shard: Shard
    state: Path | None
    save_every: int
    out: Path | None
    samples: Path | None
    seed: int
    batch_size: int
    overrides: dict[str, Any]
    device: str
    precision: Precision
    hang_minutes: float | None
    trust_plugins: bool
    overwrite: bool = False


def check_request(request: Request) -> None:
    """Raise ConfigError where flags exclude each other."""
    if request.shard == WHOLE:
        return
    if request.state is None:
        raise ConfigError("a shard is of use only once it is kept: name a file with --state")
    given = [name for name in ("out", "guidance_scales") if getattr(request, name)]
    if given:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} shows the whole: a --shard is a part of it, see `merge`")


def open_target(
    request: Request, measurement: Measurement, console: Console, processes: Processes
) -> Target:
    """Open the pictures that these metrics need. Collective.

    Raises:
        ValueError: something is missing, or pictures are of different shapes.
    """
    with processes.together():
        request = dataclasses.replace(request, target=find_model(request.target))
        if (request.target / INDEX).is_file():
            with processes.one_by_one():
                target = _open_model(request, measurement, console)
        else:
            target = _open_folder(request, measurement, console)
    _warn_of_idle_flags(request, measurement, is_model=target.pipeline is not None)
    if request.samples is not None:
        _make_samples(request, target, console, processes)
    with processes.together():
        _check_column(request, target)
        told = {"target": str(request.target), "data": request.data, "train": request.train}
        target.describe(measurement, told)
    return target


def _check_column(request: Request, target: Target) -> None:
    """Raise ConfigError where no folder has the requested caption column."""
    folders = [each for each in target.sources() if isinstance(each, FolderPictures)]
    column, there = request.caption_column, [name for each in folders for name in each.columns]
    if column is not None and column not in there:
        listed = ", ".join(map(repr, dict.fromkeys(there))) or "none"
        raise ConfigError(
            f"--caption-column {column}: no metadata has it{suggest(column, there)}; the columns "
            f"are {listed}"
        )


def _warn_of_idle_flags(request: Request, measurement: Measurement, *, is_model: bool) -> None:
    """Warn of flags without effect; a metric that could not be made may have needed any source."""
    known = [source for source in SOURCES if measurement.needing(source)]
    needs = frozenset(SOURCES if measurement.failures else known)
    for rule in idle(EVALUATE, Evaluated(request, is_model, needs)):
        warnings.warn(str(rule), SettingWarning, stacklevel=2)


# ---- a model ---------------------------------------------------------------------------------


def _open_model(request: Request, measurement: Measurement, console: Console) -> Target:
    pipeline = TextToImage.from_pretrained(
        request.target,
        device=pick_device(request.device),
        precision=request.precision,
        trust_plugins=request.trust_plugins,
    )
    sampling = dataclasses.replace(pipeline.config.sampling, **request.overrides)
    for scale in (sampling.guidance_scale, *request.guidance_scales):  # wrong ones raise here
        pipeline.generate_batches("", sampling=dataclasses.replace(sampling, guidance_scale=scale))
    _check_model_flags(request, pipeline)
    reference = None
    if not request.prompts or measurement.needing("reference"):
        reference = _reference_of_model(pipeline, request, console)
    prompts = request.prompts[: request.num_images]
    if reference is not None and not prompts:
        prompts = evaluation_prompts(_captioned(reference), request.num_images or NUM_IMAGES)
    generated = ModelPictures(
        pipeline, prompts, seed=request.seed, sampling=sampling, batch_size=request.batch_size
    )
    if isinstance(reference, DatasetPictures):
        reference = reference_pictures(reference.dataset, len(prompts))
    context = model_context(request.target, generated)
    train = _train_of_model(pipeline, request, measurement, console)
    remarks = [remark for p in (reference, train) for remark in _resized(p)]
    return Target(generated, reference, train, context, remarks, pipeline, sampling)


def _check_model_flags(request: Request, pipeline: TextToImage) -> None:
    height, width = _size_of(pipeline)
    if request.resize is not None:
        raise ConfigError(
            f"--resize has no effect on a model: {request.target} makes pictures of "
            f"{width}x{height}, and those to compare with come to that size; leave it out"
        )
    if request.samples and (request.shard != WHOLE or request.guidance_scales):
        raise ConfigError(
            "--samples goes with neither --shard nor --guidance-scales: make the samples first, "
            "then evaluate their folder"
        )
    if request.data and request.data.endswith(".npz"):
        raise ConfigError(
            f"--data {request.data}: a model's prompts are captions of the reference; sample it "
            "into a folder, and compare that with statistics"
        )


def _size_of(pipeline: TextToImage) -> tuple[int, int]:
    """Return height and width of a model's pictures."""
    _, height, width = pipeline.image_shape
    return height, width


def _make_samples(request: Request, target: Target, console: Console, processes: Processes) -> None:
    """Generate the pictures to be measured as files in `request.samples`. Collective."""
    assert request.samples is not None
    assert target.pipeline is not None
    assert target.sampling is not None
    make_samples(
        request.samples,
        target.pipeline,
        target.generated.prompts,
        model=target.context["model_sha256"],
        seed=request.seed,
        batch_size=request.batch_size,
        sampling=target.sampling,
        console=console,
        processes=processes,
        overwrite=request.overwrite,
    )
    with processes.together():
        target.generated = FolderPictures("generated", request.samples, console=console)


def _reference_of_model(
    pipeline: TextToImage, request: Request, console: Console
) -> DatasetPictures | FolderPictures:
    """Open the pictures to compare with, in the model's size."""
    config, size, data = pipeline.config, _size_of(pipeline), request.data
    if data not in (None, "train", "validation"):
        return _folder_for_model("reference", data, pipeline, request, console)
    if data != "train" and config.validation is None:
        raise ConfigError("the model's config has no validation set; name one with --data")
    section = {**config.dataset, **({} if data == "train" else config.validation or {})}
    console.print(f"reference, as the model's config asks for: {section}")
    if view_of(section.get("size") or size).size != size:
        raise ConfigError(
            f"the reference has pictures of size {section['size']}, the model {list(size)}"
        )
    reference = build_training(config) if data == "train" else build_validation(config)
    assert reference is not None
    if len(reference) > MAX_REFERENCE:
        raise ConfigError(f"the reference must have at most {MAX_REFERENCE} pictures")
    return DatasetPictures("reference", reference)


def _captioned(reference: DatasetPictures | FolderPictures) -> Dataset:
    """Return the reference as examples with captions."""
    if isinstance(reference, DatasetPictures):
        return reference.dataset
    if not any(reference.prompts):
        raise ConfigError(
            f"a model's prompts are captions of the reference: {_lack_of_prompts(reference)}"
        )
    return _Captions(reference)


class _Captions:
    """The examples of a folder that have a caption."""

    def __init__(self, pictures: FolderPictures) -> None:
        self.pictures = pictures
        self.places = [i for i, prompt in enumerate(pictures.prompts) if prompt]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        place = self.places[index]
        return {"id": self.pictures.files[place].name, "caption": self.pictures.prompts[place]}


def _train_of_model(
    pipeline: TextToImage, request: Request, measurement: Measurement, console: Console
) -> Pictures | None:
    if not measurement.needing("train"):
        return None
    if request.train in (None, "train"):
        return DatasetPictures("train", build_training(pipeline.config))
    return _folder_for_model("train", request.train, pipeline, request, console)


def _folder_for_model(
    source: str, path: str, pipeline: TextToImage, request: Request, console: Console
) -> FolderPictures:
    """Read the pictures of a folder as those of the model's own set are read."""
    name, options = plugin(pipeline.config.dataset)
    own = str(options.get("caption_column", TEXT))
    fit, max_value = options.get("fit", "crop"), options.get("max_value")
    return FolderPictures(
        source,
        Path(path),
        view=view_of(_size_of(pipeline), fit=fit, max_value=max_value),
        columns=_columns(request, own),
        class_folders=request.captions == "folder" or _has_class_folders(name, options),
        console=console,
    )


def _has_class_folders(name: str, options: dict[str, Any]) -> bool:
    """Return whether the model's own set has the names of its sub-folders as captions."""
    return name == "folder" and options.get("captions") == "folder"


def _columns(request: Request, *more: str) -> list[str]:
    """List the columns that may hold captions, the first choice first."""
    asked = [request.caption_column] if request.caption_column else []
    return list(dict.fromkeys([*asked, *more, TEXT]))


def _resized(pictures: Pictures | None) -> list[str]:
    """Return a remark where a folder's pictures were resized to the model's size."""
    if not isinstance(pictures, FolderPictures) or pictures.about()["resize"] is None:
        return []
    listed = ", ".join("{}x{}".format(*size) for size in sorted(pictures.sizes)[:3])
    _, height, width = pictures.shape
    return [f"{pictures.source} pictures were resized to {width}x{height}, some from {listed}"]


# ---- a folder --------------------------------------------------------------------------------


def _open_folder(request: Request, measurement: Measurement, console: Console) -> Target:
    folder = request.target
    of_models = ("samples", "guidance_scales", "prompts")
    given = [name.replace("_", "-") for name in of_models if getattr(request, name)]
    if unfit := [*request.overrides, *given]:
        raise ConfigError(f"{folder} holds samples, not a model: leave out {', '.join(unfit)}")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is neither a model folder nor a folder of pictures")
    view = None if request.resize is None else view_of(request.resize)
    how: dict[str, Any] = {"view": view, "columns": _columns(request), "console": console}
    how["class_folders"] = request.captions == "folder"
    generated = FolderPictures("generated", folder, limit=request.num_images, **how)
    _check_prompts(generated, measurement)
    others: dict[str, Pictures | StatisticsFile | None] = {}
    for source, flag, path in (
        ("reference", "data", request.data),
        ("train", "train", request.train),
    ):
        needing = measurement.needing(source)
        if path is None and needing:
            kind = "real" if source == "reference" else "training"
            raise ConfigError(
                f"{needing[0]} compares with {kind} pictures; name them with --{flag}"
            )
        if path is None or not needing:
            others[source] = None
        elif source == "reference" and path.endswith(".npz"):
            others[source] = StatisticsFile(Path(path), request.assume_extractor)
        else:
            others[source] = FolderPictures(source, Path(path), **how)
    remarks = []
    if request.num_images and len(generated) < request.num_images:
        remarks = [f"{folder} holds {len(generated)} samples, {request.num_images} were asked for"]
    reference, train = others["reference"], others["train"]
    assert not isinstance(train, StatisticsFile)
    return Target(generated, reference, train, {"kind": "samples"}, remarks)


def _check_prompts(generated: FolderPictures, measurement: Measurement) -> None:
    """Mark metrics that read prompts as failed where a picture has none."""
    if all(generated.prompts):
        return
    number = sum(not prompt for prompt in generated.prompts)
    for name in measurement.needing("prompts"):
        reason = (
            f"needs a prompt of every picture, {number} of {len(generated)} in "
            f"{generated.folder} have none: {_lack_of_prompts(generated)}"
        )
        measurement.fail(name, "error", reason)


def _lack_of_prompts(pictures: FolderPictures) -> str:
    """Explain why pictures of a folder have no prompt, and how to name another column."""
    reason = pictures.refusal or describe(pictures.unprompted())
    return f"{reason}; --caption-column names another column, --captions folder takes sub-folders"
