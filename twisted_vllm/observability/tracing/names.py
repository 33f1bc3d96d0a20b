"""The names of attributes, by convention. Each was read where its group says.

The GenAI conventions moved to a repository of their own in 2026, and keep their names:
https://github.com/open-telemetry/semantic-conventions-genai (``docs/gen-ai/gen-ai-spans.md``), also read in
``opentelemetry-semantic-conventions`` 0.66b2, ``opentelemetry/semconv/_incubating/attributes/gen_ai_attributes.py``.
"""

from __future__ import annotations

#: HTTP and general names: ``opentelemetry-semantic-conventions`` 0.66b2, ``opentelemetry/semconv/attributes``
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
HTTP_RESENDS = "http.request.resend_count"
HTTP_REQUEST_SIZE = "http.request.body.size"
HTTP_RESPONSE_SIZE = "http.response.body.size"
CLIENT_ADDRESS = "client.address"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
USER_ID = "user.id"
SESSION_ID = "session.id"

#: GenAI, the present names
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
STREAM = "gen_ai.request.stream"
#: by the member of the body
PARAMETERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}
CHOICES = "gen_ai.request.choice.count"
STOP = "gen_ai.request.stop_sequences"
OUTPUT_TYPE_ASKED = "gen_ai.output.type"
DIMENSIONS = "gen_ai.embeddings.dimension.count"
ENCODING_FORMATS = "gen_ai.request.encoding_formats"
TOOLS = "gen_ai.tool.definitions"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
CONVERSATION_ID = "gen_ai.conversation.id"

#: GenAI, the older names: deprecated in the same file; the total and the streaming flag are of LiteLLM 1.108
#: (``integrations/otel/mappers/legacy.py``) and OpenLLMetry
OLD_SYSTEM = "gen_ai.system"
OLD_PROMPT_TOKENS = "gen_ai.usage.prompt_tokens"
OLD_COMPLETION_TOKENS = "gen_ai.usage.completion_tokens"
OLD_TOTAL_TOKENS = "gen_ai.usage.total_tokens"
OLD_STREAMING = "llm.is_streaming"
OLD_PROMPT = "gen_ai.prompt"
OLD_COMPLETION = "gen_ai.completion"

#: OpenInference: ``openinference-semantic-conventions`` 0.1.42, ``openinference/semconv/trace``
SPAN_KIND = "openinference.span.kind"
LLM_MODEL = "llm.model_name"
EMBEDDING_MODEL = "embedding.model_name"
LLM_PROVIDER = "llm.provider"
LLM_SYSTEM = "llm.system"
LLM_PARAMETERS = "llm.invocation_parameters"
LLM_TOOLS = "llm.tools"
LLM_INPUT = "llm.input_messages"
LLM_OUTPUT = "llm.output_messages"
LLM_PROMPT_TOKENS = "llm.token_count.prompt"
LLM_COMPLETION_TOKENS = "llm.token_count.completion"
LLM_TOTAL_TOKENS = "llm.token_count.total"
LLM_CACHED_TOKENS = "llm.token_count.prompt_details.cache_read"
LLM_REASONING_TOKENS = "llm.token_count.completion_details.reasoning"
LLM_COST = "llm.cost.total"
LLM_FINISH_REASON = "llm.finish_reason"
INPUT_VALUE = "input.value"
INPUT_TYPE = "input.mime_type"
OUTPUT_VALUE = "output.value"
OUTPUT_TYPE = "output.mime_type"
TAGS = "tag.tags"
METADATA = "metadata"

#: Langfuse: https://langfuse.com/integrations/native/opentelemetry (property mapping), and LiteLLM 1.108
#: (``integrations/otel/mappers/langfuse.py``)
LF_TYPE = "langfuse.observation.type"
LF_INPUT = "langfuse.observation.input"
LF_OUTPUT = "langfuse.observation.output"
LF_MODEL = "langfuse.observation.model.name"
LF_PARAMETERS = "langfuse.observation.model.parameters"
LF_USAGE = "langfuse.observation.usage_details"
LF_COST = "langfuse.observation.cost_details"
LF_LEVEL = "langfuse.observation.level"
LF_STATUS = "langfuse.observation.status_message"
LF_FIRST_TOKEN = "langfuse.observation.completion_start_time"
LF_TRACE_NAME = "langfuse.trace.name"
LF_TRACE_TAGS = "langfuse.trace.tags"
LF_TRACE_INPUT = "langfuse.trace.input"
LF_TRACE_OUTPUT = "langfuse.trace.output"
LF_TRACE_METADATA = "langfuse.trace.metadata"
LF_USER = "langfuse.user.id"
LF_SESSION = "langfuse.session.id"

#: MLflow: ``mlflow`` 3, ``mlflow/tracing/constant.py``
ML_INPUTS = "mlflow.spanInputs"
ML_OUTPUTS = "mlflow.spanOutputs"
ML_TYPE = "mlflow.spanType"
ML_USAGE = "mlflow.chat.tokenUsage"
ML_COST = "mlflow.llm.cost"
ML_MODEL = "mlflow.llm.model"
ML_PROVIDER = "mlflow.llm.provider"
ML_FORMAT = "mlflow.message.format"
ML_TAG = "mlflow.traceTag."

#: LiteLLM 1.108: ``integrations/otel/model/semconv.py``; the cost also under ``integrations/opentelemetry.py``'s name
LL_CALL_ID = "litellm.call_id"
LL_COST = "litellm.cost.total"
LL_OLD_COST = "gen_ai.cost.total_cost"
LL_TEAM = "litellm.team.id"
LL_KEY_HASH = "litellm.api_key.hash"
LL_END_USER = "litellm.end_user.id"
LL_MODEL = "litellm.provider.model"
LL_STREAMING = "litellm.request.streaming"
LL_ROUTE = "litellm.request.route"

#: the gateway's own
OWN = "vllm_passthrough."
