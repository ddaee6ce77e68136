"""What renders, as the settings want it: for a runner, and for whoever makes an image again."""

from dreamforge.settings import Settings, unconfigured_environ
from runners.engines.process import EngineConfig, EngineProcess
from runners.fake_renderer import Renderer
from runners.faults import FaultPlan


def engine_process(settings: Settings) -> EngineProcess:
    """The engine process, which starts when it is first needed."""
    config = EngineConfig(
        device=settings.device, dtype=settings.dtype, batch_max=settings.batch_max, model_bytes=settings.model_bytes
    )
    # Without our keys: a trusted model may run code of its own.
    return EngineProcess(config, stall_s=settings.engine_stall_s, environ=unconfigured_environ())


def fake_engine(settings: Settings, faults: FaultPlan | None = None) -> Renderer:
    """What renders without a model."""
    return Renderer(faults=faults or FaultPlan(), max_pixels=settings.max_pixels)
