"""Creates the engines from the settings, for runners and for `audit reproduce`."""

from dreamforge.settings import Settings, unconfigured_environ
from runners.engines.process import EngineConfig, EngineProcess
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan


def create_engine_process(settings: Settings) -> EngineProcess:
    """The engine process. It starts at its first work."""
    config = EngineConfig(
        device=settings.device, dtype=settings.dtype, batch_max=settings.batch_max, model_bytes=settings.model_bytes
    )
    # Without our secrets: a trusted model may run its own code.
    return EngineProcess(config, stall_s=settings.engine_stall_s, environ=unconfigured_environ())


def create_fake_renderer(settings: Settings, faults: FaultPlan | None = None) -> FakeRenderer:
    """The renderer without models."""
    return FakeRenderer(faults=faults or FaultPlan(), max_pixels=settings.max_pixels)
