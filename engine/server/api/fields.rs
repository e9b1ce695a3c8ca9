//! Every field of the API's objects and what becomes of it: those that OpenAI documents, and what its clients and llama.cpp's send
//! besides.

use crate::fields::Table;
use crate::fields::Treatment::{Ignored, Refused, Used};

/// `/v1/chat/completions`
pub const CHAT: Table = &[
    (Used, &["messages", "model", "n", "stop", "stream", "stream_options", "user"]),
    (
        Used,
        &[
            "max_completion_tokens",
            "max_tokens",
            "n_predict",
            "seed",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
        ],
    ),
    (
        Used,
        &[
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "ignore_eos",
            "logprobs",
            "top_logprobs",
        ],
    ),
    (Used, &["response_format", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"]),
    // What the prefix cache does needs no asking.
    (Ignored, &["cache_prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"]),
    // A guess at the answer, to be faster.
    (Ignored, &["prediction"]),
    (Ignored, &["metadata", "store", "safety_identifier", "service_tier"]),
    // Whether a model thinks is its template's matter: `chat_template_kwargs`.
    (Ignored, &["reasoning_effort", "verbosity"]),
    (Refused(&["{}"]), &["logit_bias"]),
    (Refused(&["[]", "[\"text\"]"]), &["modalities"]),
    (Refused(&["[]"]), &["functions"]),
    (Refused(&["\"none\"", "\"auto\""]), &["function_call"]),
    // An empty object asks for a search.
    (Refused(&[]), &["audio", "moderation", "web_search_options"]),
];

/// `/v1/completions`
pub const COMPLETION: Table = &[
    (Used, &["prompt", "model", "n", "stop", "stream", "stream_options", "user"]),
    (Used, &["max_tokens", "n_predict", "seed", "temperature", "top_p", "top_k", "min_p"]),
    (Used, &["presence_penalty", "frequency_penalty", "repeat_penalty", "ignore_eos", "logprobs"]),
    (Ignored, &["cache_prompt"]),
    (Refused(&["1"]), &["best_of"]),
    (Refused(&["false"]), &["echo"]),
    (Refused(&["{}"]), &["logit_bias"]),
    (Refused(&["\"\""]), &["suffix"]),
];

/// `/v1/embeddings`
pub const EMBEDDING: Table = &[(Used, &["input", "model", "encoding_format", "dimensions", "user"])];

/// `/v1/rerank`
pub const RERANK: Table = &[(Used, &["query", "documents", "model", "top_n", "return_documents"])];

/// `/v1/generate`
pub const GENERATE: Table = &[
    (
        Used,
        &[
            "prompt",
            "ids",
            "raw",
            "system",
            "max_tokens",
            "n_predict",
            "stop",
            "ignore_eos",
            "stream",
            "logprobs",
        ],
    ),
    (
        Used,
        &["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty"],
    ),
    (Used, &["frequency_penalty", "seed"]),
    (Ignored, &["cache_prompt"]),
];

/// `/tokenize`
pub const TOKENIZE: Table = &[(Used, &["text", "parse_special"])];

/// `/detokenize`
pub const DETOKENIZE: Table = &[(Used, &["ids", "skip_special"])];

/// `stream_options`
pub const STREAM_OPTIONS: Table = &[
    (Used, &["include_usage"]),
    // Padding against listeners who know lengths.
    (Ignored, &["include_obfuscation"]),
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
    ("CompletionRequest", COMPLETION),
    ("EmbeddingRequest", EMBEDDING),
    ("RerankRequest", RERANK),
    ("GenerateRequest", GENERATE),
    ("TokenizeRequest", TOKENIZE),
    ("DetokenizeRequest", DETOKENIZE),
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
