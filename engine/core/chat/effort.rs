//! How much a model is to think, in the words of the template that it was trained with.

use super::ChatTemplate;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// How much a model is to think, as OpenAI's interface has it (`reasoning_effort`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, Serialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Not at all.
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

/// The words, from little to much.
const WORDS: [(Effort, &str); 6] = [
    (Effort::Minimal, "minimal"),
    (Effort::Low, "low"),
    (Effort::Medium, "medium"),
    (Effort::High, "high"),
    (Effort::XHigh, "xhigh"),
    (Effort::Max, "max"),
];

impl Effort {
    /// The words for it, the nearest ones first; of two as near the one for more.
    fn words(self) -> Vec<&'static str> {
        let at = |effort: Effort| effort.max(Self::Minimal) as i32;
        let mut words = WORDS;
        words.sort_by_key(|&(effort, _)| ((at(effort) - at(self)).abs(), std::cmp::Reverse(effort)));
        words.into_iter().map(|(_, word)| word).collect()
    }
}

/// The variable that switches thinking on and off.
pub const ENABLE: &str = "enable_thinking";
/// The variable that says how much.
pub const EFFORT: &str = "reasoning_effort";

impl ChatTemplate {
    /// As [`ChatTemplate::render_with`], opening the assistant's turn, with an effort in the template's own terms: `enable_thinking`, and
    /// the nearest `reasoning_effort` that the template takes. What `variables` says of these is left as it is. A template that takes
    /// none of it renders without.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_with`], never for the effort's sake.
    pub fn render_with_effort<M: Serialize, T: Serialize>(
        &self,
        messages: &[M],
        tools: &[T],
        variables: &Map<String, Value>,
        effort: Option<Effort>,
    ) -> Result<String> {
        let render = |variables: &Map<String, Value>| self.render_with(messages, tools, true, variables);
        let Some(effort) = effort else { return render(variables) };
        let mut with = variables.clone();
        with.entry(ENABLE).or_insert_with(|| (effort != Effort::None).into());
        let is_refused = |rendered: &Result<String>| matches!(rendered, Err(Error::Request(_)));
        let takes_words = self.mentions(EFFORT) && !variables.contains_key(EFFORT);
        if !takes_words || (effort == Effort::None && self.mentions(ENABLE)) {
            let rendered = render(&with);
            if !is_refused(&rendered) {
                return rendered;
            }
        }
        if takes_words {
            if effort == Effort::None && !variables.contains_key(ENABLE) {
                with.remove(ENABLE);
            }
            for word in effort.words() {
                with.insert(EFFORT.into(), word.into());
                let rendered = render(&with);
                if !is_refused(&rendered) {
                    return rendered;
                }
            }
        }
        render(variables)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;

    fn rendered(source: &str, variables: Value, effort: Effort) -> String {
        let template = ChatTemplate::new(source, "", "").unwrap();
        let messages = [Message::new("user", "hi")];
        let variables = variables.as_object().unwrap();
        let rendered = template.render_with_effort::<_, ()>(&messages, &[], variables, Some(effort));
        rendered.unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn the_nearest_word_that_the_template_takes() {
        // As Qwen3.8's does.
        let source = "{%- set e = reasoning_effort | default('xhigh') -%}\
            {%- if e not in ['xhigh', 'medium', 'low'] %}{{ raise_exception('effort ' + e) }}{% endif -%}\
            {{ e }}{% if enable_thinking is defined and not enable_thinking %} off{% endif %}";
        for (effort, expected) in [
            (Effort::None, "xhigh off"),
            (Effort::Minimal, "low"),
            (Effort::Low, "low"),
            (Effort::Medium, "medium"),
            (Effort::High, "xhigh"),
            (Effort::Max, "xhigh"),
        ] {
            assert_eq!(rendered(source, serde_json::json!({}), effort), expected, "{effort:?}");
        }
        let given = serde_json::json!({"reasoning_effort": "low", "enable_thinking": false});
        assert_eq!(rendered(source, given, Effort::High), "low off", "the template's own words come first");
        let never = source.replace("{{ e }}", "{{ raise_exception('never') }}");
        assert!(rendered(&never, serde_json::json!({}), Effort::High).ends_with("never"));
    }

    #[test]
    fn a_template_that_must_think_thinks_least() {
        let source = "{% if enable_thinking is defined and enable_thinking is false %}{{ raise_exception('it thinks') }}{% endif %}\
                      {{ reasoning_effort | default('high') }}";
        assert_eq!(rendered(source, serde_json::json!({}), Effort::None), "minimal");
        let source = source.replace("{{ reasoning_effort | default('high') }}", "thinking");
        assert_eq!(rendered(&source, serde_json::json!({}), Effort::None), "thinking");
    }

    #[test]
    fn a_switch_alone_is_switched() {
        let source = "{{ 'on' if enable_thinking | default(false) else 'off' }}";
        for (effort, expected) in [(Effort::None, "off"), (Effort::Minimal, "on"), (Effort::High, "on")] {
            assert_eq!(rendered(source, serde_json::json!({}), effort), expected);
        }
    }
}
