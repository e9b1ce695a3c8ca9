"""Writes a model file that says a script: whatever a conversation is about, its answer behind as many results of tools as there are is the script's
answer of that number.

It is a Qwen2 of one layer whose attention and feed-forward parts give nothing, so that each token follows from the one before: every piece of an answer
is a token that leads to the next piece. Which answer comes is said by its chat template, which ends a prompt with a token for the number of results in the
conversation. Nothing of that is known to the engine or the server: prompts are computed, tokens are drawn, calls are read from the text as ever.
"""

import json

import gguf
import numpy as np

TEMPLATE = """\
{%- set ns = namespace(results=0) %}
{%- if tools %}
    {{- '<|im_start|>system\\nTools:\\n' }}
    {%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- if message.role == 'tool' %}{%- set ns.results = ns.results + 1 %}{%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<|answer_' ~ ns.results ~ '|>' }}
{%- endif %}
"""


# Characters of a piece, at least; and tokens of the context.
PIECE = 8
CONTEXT = 32768


def call(name, **arguments):
    """A call as the template shows it."""
    return f"\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def byte_alphabet():
    """GPT-2's characters for bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def write(path, script):
    """Writes the model whose answers are the texts of `script`, in pieces of `PIECE` characters or more."""
    letters = byte_alphabet()
    # GPT-2's order of bytes; then what has a meaning of its own; then the pieces.
    tokens, types = list(letters.values()), [gguf.TokenType.NORMAL] * 256
    end = len(tokens)
    tokens += ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "th"]
    types += [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL]
    follows = {}

    def encoded(text):
        return "".join(letters[byte] for byte in text.encode())

    for number, text in enumerate(script):
        before = len(tokens)
        tokens.append(f"<|answer_{number}|>")
        types.append(gguf.TokenType.CONTROL)
        while text:
            # No two tokens have the same text: a piece is as long as it takes.
            length = PIECE
            while length < len(text) and encoded(text[:length]) in tokens:
                length += 1
            # Calls end alike: what ends them is no piece by itself.
            length = length if len(text) - length >= 4 * PIECE else len(text)
            follows[before] = before = len(tokens)
            tokens.append(encoded(text[:length]))
            types.append(gguf.TokenType.NORMAL)
            text = text[length:]
        follows[before] = end
    assert len(set(tokens)) == len(tokens), "two pieces have the same text: take others"
    width = -(-(len(follows) + 1) // 64) * 64
    embedding, head = np.zeros((2, len(tokens), width), np.float32)
    embedding[:, 0] = 1
    head[end, 0] = 1
    for place, (token, next) in enumerate(follows.items(), start=1):
        embedding[token] = 0
        embedding[token, place] = 1
        head[next, place] = 1

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("scripted")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", head)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
    for name, rows in (("q", width), ("k", 64), ("v", 64)):
        writer.add_tensor(f"blk.0.attn_{name}.weight", np.zeros((rows, width), np.float32))
        writer.add_tensor(f"blk.0.attn_{name}.bias", np.zeros(rows, np.float32))
    writer.add_tensor("blk.0.attn_output.weight", np.zeros((width, width), np.float32))
    writer.add_tensor("blk.0.ffn_gate.weight", np.zeros((64, width), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, width), np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros((width, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
