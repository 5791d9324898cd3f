"""Public providers that speak OpenAI's chat dialect: where they are and which variable holds their key.

Facts from the providers' own documentation. `base_url` is what `/chat/completions` is added to.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.model import KeyRef


class Provider(Struct, frozen=True):
    id: str
    base_url: str
    key_variables: tuple[str, ...] = ()
    """The usual one first; empty for hosts that want no key."""
    automatic: bool = True
    """Served by the default configuration once a variable is set. False where the variable is shared
    with another provider or commonly holds a credential for something else."""
    models: tuple[str, ...] = ()
    """Names that the default configuration serves without the provider in front."""

    def key(self, environment: Mapping[str, str]) -> KeyRef | None:
        """The first variable that is set here, else the usual one; None where no key is wanted."""
        if not self.key_variables:
            return None
        for name in self.key_variables:
            if environment.get(name):
                return KeyRef("env", name)
        return KeyRef("env", self.key_variables[0])


def _public(
    id_: str, base_url: str, *key_variables: str, automatic: bool = True, models: str = ""
) -> Provider:
    return Provider(id_, base_url, key_variables, automatic, tuple(models.split()))


_ALL: Final = (
    _public(
        "openai",
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        models="gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-4.1-nano gpt-5 gpt-5-mini gpt-5-nano"
        " o3 o4-mini text-embedding-3-small text-embedding-3-large",
    ),
    _public("ai21", "https://api.ai21.com/studio/v1", "AI21_API_KEY"),
    _public("aimlapi", "https://api.aimlapi.com/v1", "AIML_API_KEY", "AIMLAPI_KEY"),
    _public("baseten", "https://inference.baseten.co/v1", "BASETEN_API_KEY"),
    _public("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    _public("chutes", "https://llm.chutes.ai/v1", "CHUTES_API_KEY"),
    _public(
        "dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"
    ),
    _public(
        "dashscope-cn",
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
        "DASHSCOPE_API_KEY",
        automatic=False,
    ),
    _public(
        "deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"
    ),
    _public(
        "deepseek",
        "https://api.deepseek.com/v1",
        "DEEPSEEK_API_KEY",
        models="deepseek-chat deepseek-reasoner",
    ),
    _public(
        "digitalocean",
        "https://inference.do-ai.run/v1",
        "DIGITALOCEAN_INFERENCE_KEY",
        "DIGITALOCEAN_ACCESS_TOKEN",
        automatic=False,
    ),
    _public(
        "featherless",
        "https://api.featherless.ai/v1",
        "FEATHERLESS_API_KEY",
        "FEATHERLESS_AI_API_KEY",
    ),
    _public(
        "fireworks",
        "https://api.fireworks.ai/inference/v1",
        "FIREWORKS_API_KEY",
        "FIREWORKS_AI_API_KEY",
    ),
    _public("friendli", "https://api.friendli.ai/serverless/v1", "FRIENDLI_TOKEN"),
    _public("github", "https://models.github.ai/inference", "GITHUB_TOKEN", automatic=False),
    _public("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    _public("helicone", "https://ai-gateway.helicone.ai/v1", "HELICONE_API_KEY"),
    _public("huggingface", "https://router.huggingface.co/v1", "HF_TOKEN", "HUGGINGFACE_API_KEY"),
    _public("hyperbolic", "https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY"),
    _public("inception", "https://api.inceptionlabs.ai/v1", "INCEPTION_API_KEY"),
    _public("inference-net", "https://api.inference.net/v1", "INFERENCE_API_KEY"),
    _public("io-net", "https://api.intelligence.io.solutions/api/v1", "IOINTELLIGENCE_API_KEY"),
    _public("lambda", "https://api.lambda.ai/v1", "LAMBDA_API_KEY"),
    _public("meta-llama", "https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
    _public(
        "mistral",
        "https://api.mistral.ai/v1",
        "MISTRAL_API_KEY",
        models="mistral-large-latest mistral-medium-latest mistral-small-latest",
    ),
    _public("codestral", "https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    _public("modelscope", "https://api-inference.modelscope.cn/v1", "MODELSCOPE_API_KEY"),
    _public("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    _public("moonshot-cn", "https://api.moonshot.cn/v1", "MOONSHOT_API_KEY", automatic=False),
    _public("morph", "https://api.morphllm.com/v1", "MORPH_API_KEY"),
    _public("nebius", "https://api.tokenfactory.nebius.com/v1", "NEBIUS_API_KEY"),
    _public("novita", "https://api.novita.ai/openai", "NOVITA_API_KEY"),
    _public("nscale", "https://inference.api.nscale.com/v1", "NSCALE_API_KEY"),
    _public(
        "nvidia", "https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", "NVIDIA_NIM_API_KEY"
    ),
    _public("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    _public(
        "ovhcloud",
        "https://oai.endpoints.kepler.ai.cloud.ovh.net/v1",
        "OVHCLOUD_API_KEY",
        "OVH_AI_ENDPOINTS_ACCESS_TOKEN",
    ),
    _public("parasail", "https://api.parasail.io/v1", "PARASAIL_API_KEY"),
    _public(
        "perplexity", "https://api.perplexity.ai", "PERPLEXITY_API_KEY", "PERPLEXITYAI_API_KEY"
    ),
    _public("poe", "https://api.poe.com/v1", "POE_API_KEY"),
    _public("reka", "https://api.reka.ai/v1", "REKA_API_KEY"),
    _public("requesty", "https://router.requesty.ai/v1", "REQUESTY_API_KEY"),
    _public("sambanova", "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    _public(
        "scaleway",
        "https://api.scaleway.ai/v1",
        "SCALEWAY_API_KEY",
        "SCW_SECRET_KEY",
        automatic=False,
    ),
    _public("siliconflow", "https://api.siliconflow.com/v1", "SILICONFLOW_API_KEY"),
    _public(
        "siliconflow-cn",
        "https://api.siliconflow.cn/v1",
        "SILICONFLOW_CN_API_KEY",
        "SILICONFLOW_API_KEY",
        automatic=False,
    ),
    _public("stepfun", "https://api.stepfun.com/v1", "STEPFUN_API_KEY"),
    _public("synthetic", "https://api.synthetic.new/openai/v1", "SYNTHETIC_API_KEY"),
    _public("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
    _public("upstage", "https://api.upstage.ai/v1/solar", "UPSTAGE_API_KEY"),
    _public("v0", "https://api.v0.dev/v1", "V0_API_KEY"),
    _public("venice", "https://api.venice.ai/api/v1", "VENICE_API_KEY", "VENICE_AI_API_KEY"),
    _public(
        "vercel",
        "https://ai-gateway.vercel.sh/v1",
        "AI_GATEWAY_API_KEY",
        "VERCEL_AI_GATEWAY_API_KEY",
    ),
    _public(
        "volcengine",
        "https://ark.cn-beijing.volces.com/api/v3",
        "ARK_API_KEY",
        "VOLCENGINE_API_KEY",
    ),
    _public("wandb", "https://api.inference.wandb.ai/v1", "WANDB_API_KEY", automatic=False),
    _public("xai", "https://api.x.ai/v1", "XAI_API_KEY", models="grok-4 grok-3 grok-3-mini"),
    _public("zai", "https://api.z.ai/api/paas/v4", "ZAI_API_KEY"),
    _public("zhipu", "https://open.bigmodel.cn/api/paas/v4", "ZHIPU_API_KEY"),
    # On this machine, at the address that each listens on unless told otherwise.
    _public("ollama", "http://127.0.0.1:11434/v1"),
    _public("vllm", "http://127.0.0.1:8000/v1"),
    _public("lmstudio", "http://127.0.0.1:1234/v1"),
    _public("llamacpp", "http://127.0.0.1:8080/v1"),
)

CATALOGUE: Final[Mapping[str, Provider]] = {provider.id: provider for provider in _ALL}
