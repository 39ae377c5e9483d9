"""vLLM as the engine of prediction and serving: its scheduler and kernels, with our grammar and coordinates.

Only `processor` and `predictor` import vllm, which is not a dependency of CoordExp and has an environment of its own
(docs/serving.md). `processor` implements the logits processors of vLLM's first model runner, which exists for CPUs too;
`settings` selects that runner. VLLM_VERSION is the version that it was tested with.
"""

VLLM_VERSION = "0.32.0"
