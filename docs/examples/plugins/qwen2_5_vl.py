"""Model family `qwen2_5_vl`: Qwen2.5-VL, whose image tokens cover 28x28 pixels. For full-parameter training."""

from coordexp.modeling.families import FAMILIES, EmbeddingTensors, ModelFamily, SwiftNames
from coordexp.modeling.families.qwen3_vl import Qwen3VL


@FAMILIES.register("qwen2_5_vl")
class Qwen25VL(Qwen3VL):
    """Same special tokens, modules and positions as Qwen3-VL, but different tensor names in checkpoints."""

    swift = SwiftNames(model_type="qwen2_5_vl", template="qwen2_5_vl", requires=("transformers>=4.49",))
    tiny_tokenizer = ModelFamily.tiny_tokenizer  # no tiny model of this family
    write_tiny = ModelFamily.write_tiny

    def embeddings(self, config):
        return EmbeddingTensors("model.embed_tokens.weight", "lm_head.weight", self.is_tied(config))
