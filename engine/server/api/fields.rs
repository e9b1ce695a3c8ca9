//! Every field of the API's objects and what becomes of it: those that OpenAI documents, and what its clients and llama.cpp's send
//! besides. SGLang's router parses what it passes on, and adds what its own engine knows, at its default.

use crate::fields::Table;
use crate::fields::Treatment::{Ignored, Refused, Used};

/// How the tokens of an answer are drawn: all that `sampled_request` declares.
const SAMPLING: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "grammar",
    "banned_strings",
    "logit_bias",
    "samplers",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dynatemp_range",
    "dynatemp_exponent",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "speculative.n_max",
    "speculative.n_min",
    "speculative.p_min",
    "lora",
];

/// `/v1/chat/completions`
pub const CHAT: Table = &[
    (Used, &["messages", "model", "n", "stop", "stream", "stream_options", "user"]),
    (Used, &["max_completion_tokens", "max_tokens", "n_predict"]),
    (Used, &["logprobs", "top_logprobs", "prompt_logprobs"]),
    (Used, &["response_format", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"]),
    (Used, &["reasoning_effort", "enable_thinking", "thinking_budget_tokens", "thinking_budget"]),
    (Used, SAMPLING),
    // What the prefix cache does needs no asking.
    (Ignored, &["cache_prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"]),
    // A guess at the answer, to be faster.
    (Ignored, &["prediction"]),
    (Ignored, &["metadata", "store", "safety_identifier", "service_tier"]),
    (Ignored, &["verbosity"]),
    (Refused(&["[]", "[\"text\"]"]), &["modalities"]),
    (Refused(&["[]"]), &["functions"]),
    (Refused(&["\"none\"", "\"auto\""]), &["function_call"]),
    // An empty object asks for a search.
    (Refused(&[]), &["audio", "moderation", "web_search_options"]),
    (Refused(&["false"]), &["continue_final_message", "no_stop_trim", "return_hidden_states"]),
    (Refused(&["true"]), &["separate_reasoning", "skip_special_tokens", "stream_reasoning"]),
    (Refused(&["1"]), &["repetition_penalty"]),
];

/// An adapter of `lora`
pub const LORA_SCALE: Table = &[(Used, &["id", "scale"])];

/// `/v1/responses`
pub const RESPONSES: Table = &[
    (
        Used,
        &["input", "instructions", "model", "stream", "max_output_tokens", "previous_response_id", "store"],
    ),
    (Used, &["metadata", "top_logprobs", "include", "user"]),
    (Used, &["tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "chat_template_kwargs"]),
    (Used, SAMPLING),
    (Ignored, &["safety_identifier", "service_tier", "stream_options"]),
    (Ignored, &["prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"]),
    // Of tools that run at OpenAI's.
    (Ignored, &["max_tool_calls"]),
    (Refused(&["false"]), &["background"]),
    (Refused(&["\"disabled\""]), &["truncation"]),
    (Refused(&["[]"]), &["context_management"]),
    (Refused(&["0"]), &["priority"]),
    (Refused(&["1"]), &["repetition_penalty"]),
    (
        Refused(&[]),
        &["conversation", "prompt", "moderation", "image", "background_options", "access_programs"],
    ),
];

/// An item of `input`. Clients send back what they got of an answer.
pub const INPUT_ITEM: Table = &[
    (Used, &["type", "role", "content", "summary", "call_id", "name", "arguments", "output"]),
    (Ignored, &["id", "status", "phase", "encrypted_content", "created_by", "parsed_arguments"]),
    (Refused(&["false"]), &["async", "async_"]),
    (Refused(&[]), &["namespace", "caller"]),
];

/// A part of an item's `content`.
pub const INPUT_PART: Table = &[
    (Used, &["type", "text", "refusal"]),
    (Ignored, &["annotations", "logprobs", "parsed", "prompt_cache_breakpoint"]),
    (Refused(&[]), &["image_url", "detail", "file_id", "file_data", "file_url", "filename", "input_audio"]),
];

/// `reasoning`
pub const REASONING: Table = &[
    (Used, &["effort"]),
    // Thoughts are shown as they are.
    (Ignored, &["summary", "generate_summary", "context"]),
    (Refused(&[]), &["mode"]),
];

/// `text`
pub const TEXT_OPTIONS: Table = &[(Used, &["format"]), (Ignored, &["verbosity"])];

/// `text.format`
pub const TEXT_FORMAT: Table = &[(Used, &["type", "schema", "name"]), (Ignored, &["description", "strict"])];

/// A tool of `tools` of `/v1/responses`
pub const FLAT_TOOL: Table = &[
    (Used, &["type", "name", "description", "parameters", "strict"]),
    (Refused(&["false"]), &["defer_loading", "async"]),
    (Refused(&[]), &["allowed_callers", "output_schema"]),
];

/// `tool_choice` of `/v1/responses`
pub const FLAT_CHOICE: Table = &[(Used, &["type", "name"])];

/// `/v1/messages` and `/v1/messages/count_tokens`
pub const MESSAGES: Table = &[
    (Used, &["messages", "system", "model", "max_tokens", "stop_sequences", "stream"]),
    (Used, &["tools", "tool_choice", "thinking", "output_config", "metadata", "chat_template_kwargs"]),
    (Used, SAMPLING),
    // What the prefix cache does needs no asking.
    (Ignored, &["cache_control", "service_tier", "inference_geo", "speed"]),
    (Ignored, &["workspace_id", "user_profile_id", "diagnostics"]),
    (Refused(&["[]"]), &["mcp_servers"]),
    (Refused(&["{\"edits\":[]}"]), &["context_management"]),
    (Refused(&[]), &["container", "output_format"]),
];

/// A message of `messages` of `/v1/messages`
pub const INPUT_MESSAGE: Table = &[(Used, &["role", "content"])];

/// A block of a message's `content`. Clients send back what they got of an answer.
pub const INPUT_BLOCK: Table = &[
    (Used, &["type", "text", "thinking", "id", "name", "input", "tool_use_id", "content", "is_error"]),
    (Ignored, &["cache_control", "signature", "data", "caller"]),
    (Refused(&["[]"]), &["citations"]),
    (Refused(&[]), &["source", "title", "context", "transformations", "toolset_name"]),
];

/// A tool of `tools` of `/v1/messages`
pub const MESSAGES_TOOL: Table = &[
    (Used, &["type", "name", "description", "input_schema", "strict"]),
    (Ignored, &["cache_control", "eager_input_streaming", "input_examples"]),
    (Refused(&["false"]), &["defer_loading"]),
    (Refused(&["[\"direct\"]"]), &["allowed_callers"]),
];

/// `tool_choice` of `/v1/messages`
pub const MESSAGES_TOOL_CHOICE: Table = &[(Used, &["type", "name", "disable_parallel_tool_use"])];

/// `thinking`
pub const THINKING: Table = &[
    (Used, &["type", "budget_tokens"]),
    // Thoughts are shown as they are.
    (Ignored, &["display"]),
];

/// `output_config`
pub const OUTPUT_CONFIG: Table = &[(Used, &["effort", "format"]), (Refused(&[]), &["task_budget"])];

/// `output_config.format`
pub const OUTPUT_FORMAT: Table = &[(Used, &["type", "schema"]), (Ignored, &["name"])];

/// `metadata` of `/v1/messages`
pub const METADATA: Table = &[(Used, &["user_id"])];

/// `/v1/completions`
pub const COMPLETION: Table = &[
    (Used, &["prompt", "suffix", "echo", "best_of", "model", "n", "stop", "stream", "stream_options"]),
    (Used, &["user", "max_tokens", "n_predict", "logprobs", "prompt_logprobs"]),
    (Used, SAMPLING),
    (Ignored, &["cache_prompt"]),
    (Refused(&["false"]), &["no_stop_trim", "return_hidden_states"]),
    (Refused(&["true"]), &["skip_special_tokens"]),
    // vLLM's test of speed sends it, whatever it is told.
    (Refused(&["1"]), &["repetition_penalty"]),
];

/// `/v1/embeddings`
pub const EMBEDDING: Table = &[(Used, &["input", "model", "encoding_format", "dimensions", "user"])];

/// `/v1/rerank`
pub const RERANK: Table = &[
    (Used, &["query", "documents", "model", "top_n", "return_documents"]),
    // Who asks, and which request it is.
    (Ignored, &["rid", "user"]),
];

/// `/v1/generate`
pub const GENERATE: Table = &[
    (
        Used,
        &["prompt", "ids", "raw", "system", "model", "max_tokens", "n_predict", "stop", "stream", "logprobs"],
    ),
    (Used, SAMPLING),
    (Ignored, &["cache_prompt"]),
];

/// `/infill`
pub const INFILL: Table = &[
    (
        Used,
        &[
            "input_prefix",
            "input_suffix",
            "input_extra",
            "prompt",
            "model",
            "n_predict",
            "n_indent",
            "t_max_predict_ms",
        ],
    ),
    (Used, &["response_fields", "stop", "stream"]),
    (Used, SAMPLING),
    // Where an answer is made, and how long its prompt may take: both change no answer.
    (Ignored, &["cache_prompt", "id_slot", "t_max_prompt_ms"]),
];

/// A file of `input_extra`.
pub const EXTRA_FILE: Table = &[
    (Used, &["filename", "text"]),
    // When it was put there.
    (Ignored, &["time"]),
];

/// `/tokenize`
pub const TOKENIZE: Table = &[(Used, &["text", "prompt", "add_special_tokens", "parse_special", "model"])];

/// `/detokenize`
pub const DETOKENIZE: Table = &[(Used, &["ids", "tokens", "skip_special", "model"])];

/// `/models/load` and `/models/unload`
pub const MODEL_NAME: Table = &[(Used, &["model"])];

/// `stream_options`
pub const STREAM_OPTIONS: Table = &[
    (Used, &["include_usage"]),
    // Padding against listeners who know lengths.
    (Ignored, &["include_obfuscation"]),
    (Refused(&["false"]), &["continuous_usage_stats"]),
];

/// A message of `messages`. Clients send back what they got or made of an answer.
pub const MESSAGE: Table = &[
    (
        Used,
        &[
            "role",
            "content",
            "name",
            "refusal",
            "tool_calls",
            "tool_call_id",
            "reasoning_content",
            "reasoning",
        ],
    ),
    (Ignored, &["annotations", "cache_control", "parsed", "provider_specific_fields", "thinking_blocks"]),
    (Refused(&[]), &["audio", "function_call"]),
];

/// A part of a message's `content`.
pub const PART: Table = &[
    (Used, &["type", "text", "refusal"]),
    (Ignored, &["cache_control", "prompt_cache_breakpoint"]),
    (Refused(&[]), &["image_url", "input_audio", "file"]),
];

/// A call of `tool_calls`.
pub const CALL: Table = &[
    (Used, &["id", "type", "function"]),
    // Its place in a stream.
    (Ignored, &["index"]),
];

/// The function of a call.
pub const CALLED_FUNCTION: Table = &[(Used, &["name", "arguments"]), (Ignored, &["parsed_arguments"])];

/// A tool of `tools`.
pub const TOOL: Table = &[(Used, &["type", "function"]), (Ignored, &["cache_control"])];

/// The function of a tool.
pub const FUNCTION: Table = &[(Used, &["name", "description", "parameters", "strict"])];

/// `response_format`
pub const RESPONSE_FORMAT: Table = &[(Used, &["type", "json_schema"])];

/// `response_format.json_schema`
pub const JSON_SCHEMA: Table = &[
    (Used, &["schema"]),
    // Names are for people, and a schema is always followed strictly.
    (Ignored, &["name", "description", "strict"]),
];

/// The tables by the names of their schemas in the OpenAPI document.
pub const OBJECTS: &[(&str, Table)] = &[
    ("ChatRequest", CHAT),
    ("LoraScale", LORA_SCALE),
    ("ResponsesRequest", RESPONSES),
    ("InputItem", INPUT_ITEM),
    ("InputPart", INPUT_PART),
    ("Reasoning", REASONING),
    ("TextOptions", TEXT_OPTIONS),
    ("TextFormat", TEXT_FORMAT),
    ("FlatTool", FLAT_TOOL),
    ("FlatChoice", FLAT_CHOICE),
    ("MessagesRequest", MESSAGES),
    ("InputMessage", INPUT_MESSAGE),
    ("InputBlock", INPUT_BLOCK),
    ("MessagesTool", MESSAGES_TOOL),
    ("MessagesToolChoice", MESSAGES_TOOL_CHOICE),
    ("ThinkingOptions", THINKING),
    ("OutputConfig", OUTPUT_CONFIG),
    ("OutputFormat", OUTPUT_FORMAT),
    ("Metadata", METADATA),
    ("CompletionRequest", COMPLETION),
    ("EmbeddingRequest", EMBEDDING),
    ("RerankRequest", RERANK),
    ("GenerateRequest", GENERATE),
    ("InfillRequest", INFILL),
    ("ExtraFile", EXTRA_FILE),
    ("TokenizeRequest", TOKENIZE),
    ("DetokenizeRequest", DETOKENIZE),
    ("ModelName", MODEL_NAME),
    ("StreamOptions", STREAM_OPTIONS),
    ("ChatMessage", MESSAGE),
    ("ContentPart", PART),
    ("GivenCall", CALL),
    ("GivenFunction", CALLED_FUNCTION),
    ("Tool", TOOL),
    ("Function", FUNCTION),
    ("ResponseFormat", RESPONSE_FORMAT),
    ("JsonSchema", JSON_SCHEMA),
];
