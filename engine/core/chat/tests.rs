//! What templates make of conversations.

use super::*;
use serde_json::json;

/// A template of our own with the constructs that Qwen2.5's has: a default system prompt, tools, tool calls with and
/// without `function`, neighbouring messages, `set` in a loop, indented blocks.
const TEMPLATE: &str = r#"
{%- set given = messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\n' + (messages[0]['content'] if given else 'Be kind.') }}
{%- if tools %}
    {{- "\nTools:" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for turn in messages %}
    {%- if turn.role == "tool" %}
        {%- set before = messages[loop.index0 - 1] %}
        {%- if before.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<result>' ~ turn.content ~ '</result>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif not turn.tool_calls and not (loop.first and given) %}
        {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
    {%- elif turn.tool_calls %}
        {{- '<|im_start|>' + turn.role }}
        {%- for call in turn.tool_calls %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\n<call>{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

fn render(source: &str, messages: serde_json::Value) -> Result<String> {
    let template = ChatTemplate::new(source, "<bos>", "<eos>").unwrap();
    template.render(messages.as_array().unwrap(), &[], true)
}

#[test]
fn default_and_given_system_prompt() {
    let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
    let mut messages = vec![Message::new("user", "Hi <b>&'you'")];
    assert_eq!(
        template.render(&messages, &[], true).unwrap(),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b>&'you'<|im_end|>\n<|im_start|>assistant\n"
    );
    messages.insert(0, Message::new("system", "Be brief."));
    messages.push(Message::new("assistant", "Yo\n"));
    assert_eq!(
        template.render(&messages, &[], false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&'you'<|im_end|>\n\
         <|im_start|>assistant\nYo\n<|im_end|>\n"
    );
}

#[test]
fn tools_keep_their_order_and_spacing() {
    let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
    let tools =
        [json!({"type": "function", "function": {"name": "weather", "a": [1, 2.5, null, true], "é<>": {}}})];
    let messages = [
        json!({"role": "user", "content": "?"}),
        json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"z": 1, "city": "Łódź"}}}]}),
        json!({"role": "tool", "content": "sun"}),
        json!({"role": "tool", "content": "rain"}),
    ];
    assert_eq!(
        template.render(&messages, &tools, true).unwrap(),
        "<|im_start|>system\nBe kind.\nTools:\n\
         {\"type\": \"function\", \"function\": {\"name\": \"weather\", \"a\": [1, 2.5, null, true], \"é<>\": {}}}<|im_end|>\n\
         <|im_start|>user\n?<|im_end|>\n\
         <|im_start|>assistant\n<call>{\"name\": \"weather\", \"arguments\": {\"z\": 1, \"city\": \"Łódź\"}}</call><|im_end|>\n\
         <|im_start|>user\n<result>sun</result>\n<result>rain</result><|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn json_options() {
    let one = json!([{"role": "user", "b": 1, "a": ["é", "😀"]}]);
    for (filter, expected) in [
        ("tojson(separators=(',', ':'))", r#"{"role":"user","b":1,"a":["é","😀"]}"#),
        ("tojson(sort_keys=true)", r#"{"a": ["é", "😀"], "b": 1, "role": "user"}"#),
        ("tojson(ensure_ascii=true)", r#"{"role": "user", "b": 1, "a": ["\u00e9", "\ud83d\ude00"]}"#),
        (
            "tojson(indent=2)",
            "{\n  \"role\": \"user\",\n  \"b\": 1,\n  \"a\": [\n    \"é\",\n    \"😀\"\n  ]\n}",
        ),
    ] {
        let source = format!("{{{{ messages[0] | {filter} }}}}");
        assert_eq!(render(&source, one.clone()).unwrap(), expected, "{filter}");
    }
}

#[test]
fn what_python_templates_use() {
    let messages = json!([{"role": "user", "content": "  <think>a</think> b "}]);
    for (source, expected) in [
        ("{{ messages[0].content.strip() }}", "<think>a</think> b"),
        ("{{ messages[0]['content'].split('</think>')[-1].lstrip() }}", "b "),
        ("{{ messages[0].content.strip().startswith('<think>') }}", "True"),
        ("{% for key, value in messages[0].items() %}{{ key }};{% endfor %}", "role;content;"),
        ("{{ bos_token }}{{ eos_token }}{{ missing }}", "<bos><eos>"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% set n = namespace(x=0) %}{% for m in messages[::-1] %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
            "1",
        ),
        ("  {% if tools is none %}\n  no tools\n  {% endif %}\n", "  no tools\n"),
    ] {
        assert_eq!(render(source, messages.clone()).unwrap(), expected, "{source}");
    }
    let year: i16 = render("{{ strftime_now('%Y') }}", messages.clone()).unwrap().parse().unwrap();
    assert!((2024..3000).contains(&year));
    assert!(render("{{ strftime_now('%') }}", messages).is_err());
}

#[test]
fn faults_are_told_apart() {
    let messages = json!([{"role": "robot"}]);
    let source =
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}";
    let error = render(source, messages.clone()).unwrap_err();
    assert!(matches!(&error, Error::Request(text) if text.ends_with("roles must alternate")), "{error}");
    for source in [
        "{{ messages[0].missing.more }}",
        "{{ nothing() }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    ] {
        assert!(matches!(render(source, messages.clone()), Err(Error::Template(_))), "{source}");
    }
    assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(Error::Template(_))));
}

#[test]
fn chatml() {
    let template = ChatTemplate::new(CHATML, "", "").unwrap();
    let messages = [Message::new("system", "s"), Message::new("user", " u\n")];
    assert_eq!(
        template.render(&messages, &[], true).unwrap(),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n u\n<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn text_is_marked_for_training_and_tests_of_nothing_are_pythons() {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]);
    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}\
                  {% else %}{{ m.content.removeprefix('h') }};{% endif %}{% endfor %}";
    assert_eq!(render(marked, messages.clone()).unwrap(), "i;yo!");
    let asks = "{% if tools is iterable and tools | length > 0 %}{{ tools | tojson }}{% endif %}-{{ tools is none }}";
    let template = ChatTemplate::new(asks, "", "").unwrap();
    let messages = messages.as_array().unwrap();
    assert_eq!(template.render(messages, &[], true).unwrap(), "-True");
    assert_eq!(template.render(messages, &[json!({"lr": 1e-5})], true).unwrap(), r#"[{"lr": 1e-05}]-False"#);
}

#[test]
fn nothing_said_is_none_where_the_template_asks_for_it() {
    let call = json!({"id": "c", "type": "function", "function": {"name": "now", "arguments": {"at": [1]}}});
    let messages = [
        json!({"role": "user", "content": "w?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "content": "1"}),
    ];
    let asks = "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<call>{% for c in m.tool_calls %}\
                {{ c.function.name + c.function.arguments }}{% endfor %}</call>{% else %}{{ '<' + m.role + '>' + m.content }}{% endif %}\
                {% endfor %}";
    let shown = ChatTemplate::new(asks, "", "").unwrap().render(&messages, &[], true).unwrap();
    assert_eq!(shown, r#"<user>w?<call>now{"at": [1]}</call><tool>1"#);
    // ChatML joins the content with `+`: an empty text.
    let shown = ChatTemplate::new(CHATML, "", "").unwrap().render(&messages, &[], false).unwrap();
    assert!(shown.contains("<|im_start|>assistant\n<|im_end|>\n"), "{shown}");
}

#[test]
fn tools_have_a_template_of_their_own() {
    let template =
        ChatTemplate::new("plain", "", "").unwrap().with_tool_use("{{ tools | length }} tools").unwrap();
    let messages = [Message::new("user", "hi")];
    assert_eq!(template.render(&messages, &[], true).unwrap(), "plain");
    assert_eq!(template.render(&messages, &[json!({})], true).unwrap(), "1 tools");
    let fault = ChatTemplate::new("plain", "", "").unwrap().with_tool_use("{% for %}").unwrap_err();
    assert!(fault.to_string().contains("chat_template.tool_use` does not compile: line 1"), "{fault}");
}

#[test]
fn variables_of_the_caller_replace_none_of_the_template_s_own() {
    let template = ChatTemplate::new("{{ enable_thinking }}{{ messages | length }}", "", "").unwrap();
    let variables = json!({"enable_thinking": false, "messages": [1, 2, 3]});
    let messages = [Message::new("user", "hi")];
    assert_eq!(
        template.render_with::<_, ()>(&messages, &[], true, variables.as_object().unwrap()).unwrap(),
        "False1"
    );
}

#[test]
fn what_passes_a_bound_is_an_error_that_names_the_template() {
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let messages = [json!({"role": "user", "content": nested})];
    for (source, said) in [
        (
            "{{ messages[0].content | tojson | length }}\n{{ 'a' * 10 ** 9 }}",
            "line 2: its values take more than 64 MiB",
        ),
        (
            "{{ [[[[[[[[[[messages[0].content]]]]]]]]]] }}{{ messages[0].nothing.more }}",
            "has no attribute 'nothing'",
        ),
        (
            "{% set ns = namespace(x=messages[0].content) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "nested more than",
        ),
    ] {
        let error = ChatTemplate::new(source, "", "").unwrap().render(&messages, &[], true).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Template(_)), "{text}");
        assert!(text.contains("`tokenizer.chat_template`") && text.contains(said), "{text}");
    }
}
