"""Which of the fetched templates are of families with a profile."""

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "runs" / "templates"


class Published(NamedTuple):
    """A template's file, the `model_type` of the checkpoints that bring it, and the profile that is chosen for them."""

    file: str
    model_type: str
    profile: str

    @property
    def path(self) -> Path:
        """Where it lies once it has been fetched."""
        return FOLDER / f"{self.file}.jinja"


PUBLISHED = (
    Published("Apertus-8B-Instruct", "apertus", "apertus"),
    Published("ByteDance-Seed-OSS", "seed_oss", "seed_oss"),
    Published("Cohere2MoE", "cohere2_moe", "cohere_command"),
    Published("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "cohere2", "cohere_command"),
    Published("GLM-4.6", "glm4_moe", "glm4_moe"),
    Published("GLM-4.7-Flash", "glm4_moe_lite", "glm4_moe"),
    Published("HuggingFaceTB-SmolLM3-3B", "smollm3", "smollm3"),
    Published("Kimi-K2-Instruct", "kimi_k2", "kimi_k2"),
    Published("Kimi-K2-Thinking", "kimi_k2", "kimi_k2_thinking"),
    Published("Kimi-K3", "kimi_k3", "kimi_k3"),
    Published("LFM2-8B-A1B", "lfm2_moe", "general"),
    Published("LFM2.5-8B-A1B", "lfm2_moe", "lfm2_5"),
    Published("MiMo-VL", "mimo", "general"),
    Published("MiniMax-M2", "minimax_m2", "minimax_m2"),
    Published("MiniMax-M3", "minimax_m3_vl", "minimax_m3"),
    Published("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron_h", "nemotron_3"),
    Published("Qwen-QwQ-32B", "qwen2", "general"),
    Published("Qwen-Qwen3-0.6B", "qwen3", "qwen3"),
    Published("Qwen3-Coder", "qwen3_moe", "qwen3_coder"),
    Published("Qwen3.5-4B", "qwen3_5", "qwen3_5"),
    Published("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "llama", "deepseek_r1_distill"),
    Published("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "qwen2", "deepseek_r1_distill"),
    Published("deepseek-ai-DeepSeek-V3.1", "deepseek_v3", "deepseek_v3_1"),
    Published("deepseek-ai-DeepSeek-V3.2", "deepseek_v32", "deepseek_v3_2"),
    Published("deepseek-ai-DeepSeek-V4", "deepseek_v4", "deepseek_v4"),
    Published("google-gemma-4-31B-it", "gemma4", "gemma4"),
    Published("ibm-granite-granite-3.3-2B-Instruct", "granite", "granite3"),
    Published("ibm-granite-granite-4.0", "granitemoehybrid", "granite4"),
    Published("ibm-granite-granite-4.1", "granitemoehybrid", "granite4"),
    Published("meta-llama-Llama-3.3-70B-Instruct", "llama", "general"),
    Published("mistralai-Ministral-3-14B-Reasoning-2512", "mistral3", "magistral"),
    Published("moonshotai-Kimi-K2", "kimi_k2", "kimi_k2"),
    Published("openai-gpt-oss-120b", "gpt_oss", "gpt_oss"),
    Published("tencent-Hy3", "hy_v3", "hy3"),
    Published("upstage-Solar-Open-100B", "solar_open", "solar_open"),
    Published("unsloth-Apriel-1.5", "apriel", "general"),
    Published("StepFun3.5-Flash", "step3p5", "general"),
    Published("trl-gemma4_v5", "gemma4", "gemma4"),
    Published("trl-glm4moe", "glm4_moe", "glm4_moe"),
    Published("trl-lfm2_2_5_v2", "lfm2", "lfm2_5"),
    Published("trl-muse_glimmer", "muse_glimmer", "general"),
    Published("trl-nemotron_3_super", "nemotron_h", "nemotron_3"),
    Published("trl-nemotron_3_ultra", "nemotron_h", "nemotron_3"),
    Published("trl-nemotron_3_5_lightning", "nemotron_h", "nemotron_3"),
    Published("trl-qwen3_instruct_2507", "qwen3", "qwen3_instruct"),
    Published("trl-qwen3_vl", "qwen3_vl", "general"),
    Published("trl-qwen3_5_nothink", "qwen3_5", "qwen3_5"),
    Published("trl-qwen3_6", "qwen3_5", "qwen3_5"),
    Published("trl-qwen3_8", "qwen3_5", "qwen3_8"),
    Published("microsoft-Phi-3.5-mini-instruct", "phi3", "general"),
)
