from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.sections.model import ModelConfig, ResolvedModel


def test_the_model_is_the_embedded_one_unless_another_is_named():
    assert ModelConfig().name_or_path == BUILTIN
    assert ModelConfig().tokenizer is None


def test_a_resolved_model_is_still_a_model_section():
    settled = ResolvedModel(name_or_path="org/model", gradient_checkpointing=True)

    assert isinstance(settled, ModelConfig)
    assert settled.gradient_checkpointing is True
    assert ResolvedModel().gradient_checkpointing is ModelConfig().gradient_checkpointing is False
