//! What all interfaces of conversations ask for, and how it is asked.

use super::parts::{AnswerForm, AnswerParser};
use super::response_format::NamedSchema;
use super::samplers::Drawing;
use super::tools::ToolUse;
use crate::App;
use crate::answer::Answer;
use crate::config::ReasoningFormat;
use crate::engine_handle::SequenceRequest;
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::models::Serving;
use crate::number::ThinkingLimit;
use crate::served_model::ModelInfo;
use crate::work::RequestPermit;
use axum::http::StatusCode;
use qernel_core::chat::thinking::ThinkingParser;
use qernel_core::chat::{ChatTemplate, ENABLE_THINKING, Effort, REASONING_EFFORT};
use qernel_core::engine::{Request, Thinking};
use qernel_core::error::Error;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Variables that templates get from the server.
const RESERVED: [&str; 5] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];
/// A variable of no template, which bounds thoughts as the field does.
const THINKING_BUDGET: &str = "thinking_budget";
/// Variables that an effort stands for.
const EFFORT_VARIABLES: [&str; 2] = [ENABLE_THINKING, REASONING_EFFORT];

/// A conversation that is to go on.
pub struct Conversation {
    /// The field that has its turns.
    pub param: &'static str,
    /// The turns, as templates expect them.
    pub messages: Vec<Value>,
    pub tools: Option<ToolUse>,
    /// The form of an answer that is no call.
    pub format: Option<NamedSchema>,
    /// A grammar that the answer follows, in llama.cpp's form: there are no calls then.
    pub gbnf: Option<String>,
    /// Variables of the template.
    pub variables: Map<String, Value>,
    /// How much the model is to think, if that is said.
    pub effort: Option<Effort>,
    /// How many tokens it may think, `Some(None)` for any number, if that is said.
    pub thinking_budget: Option<Option<usize>>,
}

/// How many tokens of thoughts variables of the template allow, `Some(None)` for any number, if they say so.
///
/// # Errors
/// What is wrong with the value.
pub fn budget_of(variables: &Map<String, Value>) -> Result<Option<Option<usize>>, String> {
    let Some(value) = variables.get(THINKING_BUDGET).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let limit: ThinkingLimit = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    Ok(Some(limit.0))
}

/// How its answers are to be made.
pub struct Making {
    pub drawing: Drawing,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
    /// Of the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// How many answers, and the field that says so.
    pub n: usize,
}

/// A prompt, encoded, and what the answer to it begins in.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// It ends within thoughts.
    pub in_thoughts: bool,
}

/// Answers that come.
pub struct Asked {
    pub answer: Answer,
    /// What takes each apart.
    pub parsers: Vec<AnswerParser>,
    /// What takes thoughts from an answer, if it may have some: no stop text is looked for in them.
    pub thoughts: Option<ThinkingParser>,
    /// The prompt as the model gets it.
    pub prompt: Vec<u32>,
}

/// The model's template.
///
/// # Errors
/// 400 where it has none that can be used.
pub fn template(model: &ModelInfo) -> Result<&ChatTemplate, ApiError> {
    model.template.as_ref().map_err(|error| {
        let message = format!("{error}; use /v1/completions, or /v1/generate with `raw`");
        ApiError::refused(StatusCode::BAD_REQUEST, Some("no_template"), message)
    })
}

impl Conversation {
    /// Refuses what contradicts itself, by the names that the interface has for it.
    ///
    /// # Errors
    /// 400, by name.
    pub fn check(&mut self, ignore_eos: bool) -> Result<(), ApiError> {
        self.gbnf = self.gbnf.take().filter(|source| !source.is_empty());
        let tools = self.tools.as_ref();
        if self.format.is_some() && tools.is_some_and(ToolUse::is_forced) {
            let message =
                "tool_choice: an answer that must be a call cannot be JSON too, as `response_format` asks";
            return Err(ApiError::field("tool_choice", message));
        }
        if self.gbnf.is_some() && (self.format.is_some() || tools.is_some()) {
            let message = "grammar: an answer that follows a grammar is neither JSON by a schema nor a call; leave the schema and `tools` \
                out";
            return Err(ApiError::field("grammar", message));
        }
        if ignore_eos && (self.format.is_some() || tools.is_some_and(ToolUse::is_constrained)) {
            let message = "ignore_eos: an answer that must be JSON, or whose calls are constrained, ends where those do";
            return Err(ApiError::field("ignore_eos", message));
        }
        if self.messages.is_empty() {
            let param = self.param;
            return Err(ApiError::field(param, format!("{param}: a conversation has at least one message")));
        }
        if let Some(name) = RESERVED.into_iter().find(|name| self.variables.contains_key(*name)) {
            let param = format!("chat_template_kwargs.{name}");
            let message = format!("{param}: the server gives the template this variable; leave it out");
            return Err(ApiError::field(param, message));
        }
        let budget = budget_of(&self.variables).map_err(|error| {
            let param = format!("chat_template_kwargs.{THINKING_BUDGET}");
            ApiError::field(&*param, format!("{param}: {error}"))
        })?;
        self.thinking_budget = self.thinking_budget.or(budget);
        Ok(())
    }

    /// The variables of the template: the server's, but for those of an effort where the request has one, and the request's.
    fn variables(&self, app: &App) -> Map<String, Value> {
        let mut variables = app.config.template_variables.clone();
        if self.effort.is_some() || self.thinking_budget == Some(Some(0)) {
            EFFORT_VARIABLES.into_iter().for_each(|name| drop(variables.shift_remove(name)));
        }
        variables.extend(self.variables.clone());
        variables
    }

    /// Renders and encodes the conversation.
    ///
    /// # Errors
    /// As [`Conversation::render`], and 400 where the prompt is too long.
    pub async fn encode(
        &self,
        app: &Arc<Serving>,
        permit: RequestPermit,
    ) -> Result<(RequestPermit, Prompt), ApiError> {
        let (messages, variables) = (self.messages.clone(), self.variables(app));
        let tools = self.tools.clone();
        let param = self.param;
        // Without a token for thoughts the template is told that there are none.
        let effort = self.effort.or((self.budget(app) == Some(0)).then_some(Effort::None));
        let render = move |model: &ModelInfo| {
            Rendering { param, messages: &messages, tools: tools.as_ref(), variables: &variables, effort }
                .render(template(model)?)
        };
        app.encode(permit, param, render).await
    }

    /// How many tokens of thoughts an answer may have. None at all where it is to have none: there are templates that open thoughts
    /// whatever they are told.
    fn budget(&self, app: &App) -> Option<usize> {
        let none = (self.effort == Some(Effort::None)).then_some(Some(0));
        // What the server's variables say was checked when it started.
        let of_server = || budget_of(&app.config.template_variables).ok().flatten();
        self.thinking_budget.or(none).or_else(of_server).unwrap_or(app.config.reasoning_budget)
    }

    /// Asks for answers: they come, and what takes each apart.
    ///
    /// # Errors
    /// Those of the template, of grammars and of the engine.
    pub async fn ask(
        self,
        app: &Arc<Serving>,
        permit: RequestPermit,
        making: Making,
    ) -> Result<Asked, ApiError> {
        let (permit, prompt) = self.encode(app, permit).await?;
        let model = app.engine.model()?;
        let template = template(model)?;
        let budget = self.budget(app);
        let (param, format) = (self.param, self.format);
        let mut form = AnswerForm {
            reads_thoughts: match app.config.reasoning_format {
                ReasoningFormat::None => false,
                ReasoningFormat::Deepseek => true,
                ReasoningFormat::Auto => template.thinks(),
            },
            in_thoughts: prompt.in_thoughts,
            functions: self.tools.as_ref().map(|tools| Arc::new(tools.functions())),
            dialect: template.dialect(),
            is_constrained: false,
        };
        let (permit, grammar) = match self.gbnf {
            Some(source) => app.gbnf(permit, Some(source), making.drawing.ignore_eos).await?,
            None => grammar(app, permit, self.tools, format, &form).await?,
        };
        form.is_constrained = grammar.is_some();
        let thinks = prompt.in_thoughts || template.thinks();
        let thoughts = (thinks || form.reads_thoughts).then(|| form.thoughts());
        let thinking = (thinks && (budget.is_some() || grammar.is_some())).then(|| Thinking {
            is_open: prompt.in_thoughts,
            budget,
            message: app.config.reasoning_budget_message.clone(),
            functions: form.functions.iter().flat_map(|functions| functions.keys().cloned()).collect(),
        });
        let choice = |index| SequenceRequest {
            request: Request {
                max_tokens: making.max_tokens,
                stop: making.stop.clone(),
                thoughts: thoughts.clone(),
                index,
                logprobs: making.logprobs,
                // Of all answers one is enough.
                prompt_logprobs: making.prompt_logprobs.filter(|_| index == 0),
                ..making.drawing.request(prompt.ids.clone())
            },
            grammar: grammar.clone(),
            thinking: thinking.clone(),
            prompt_param: param,
        };
        let answer = app.submit(permit, (0..making.n as u32).map(choice).collect()).await?;
        let parsers = (0..making.n).map(|_| AnswerParser::new(&form)).collect();
        Ok(Asked { answer, parsers, thoughts, prompt: prompt.ids })
    }
}

/// The grammar that answers must follow, if there is one.
async fn grammar(
    app: &Arc<Serving>,
    permit: RequestPermit,
    tools: Option<ToolUse>,
    format: Option<NamedSchema>,
    form: &AnswerForm,
) -> Result<(RequestPermit, Option<Grammar>), ApiError> {
    let calls = tools.filter(|tools| tools.is_constrained() || format.is_some());
    let calls = calls.map(|tools| tools.calls(form.dialect)).transpose()?;
    if calls.is_none() && format.is_none() {
        return Ok((permit, None));
    }
    let of_thread = Arc::clone(app);
    let compile = move || {
        let grammars = of_thread.engine.model()?.grammars()?;
        match (calls, format) {
            (Some(calls), format) => calls.grammar(grammars, format).map(Some),
            (None, Some((param, schema))) => grammars.schema(param, schema).map(Some),
            (None, None) => Ok(None),
        }
    };
    app.work.grammar(permit, compile).await
}

/// What a template gets.
struct Rendering<'a> {
    param: &'static str,
    messages: &'a [Value],
    tools: Option<&'a ToolUse>,
    variables: &'a Map<String, Value>,
    effort: Option<Effort>,
}

impl Rendering<'_> {
    /// The prompt of a conversation.
    ///
    /// # Errors
    /// 400 where the template refuses the conversation, or leaves out the tools or what was called.
    fn render(&self, template: &ChatTemplate) -> Result<String, ApiError> {
        let for_template = self.tools.map(ToolUse::for_template).unwrap_or_default();
        let render = |messages: &[Value], tools: &[_]| {
            template.render_with_effort(messages, tools, self.variables, self.effort)
        };
        let text = render(self.messages, &for_template).map_err(|error| match error {
            Error::Request(message) => ApiError::field(self.param, message),
            error => error.into(),
        })?;
        let refuse = |param: String| {
            let message = format!(
                "{param}: the model's chat template leaves them out, so the model would not know of them; do so too, or take \
                 a model that was made for tools"
            );
            Err(ApiError::field(param, message))
        };
        if self.tools.is_some() && render(self.messages, &[]).is_ok_and(|without| without == text) {
            return refuse("tools".into());
        }
        let has_calls =
            |message: &Value| message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
        if let Some(i) = self.messages.iter().position(has_calls) {
            let mut without = self.messages.to_vec();
            without[i]["tool_calls"] = Value::Null;
            if render(&without, &for_template).is_ok_and(|without| without == text) {
                return refuse(format!("{}[{i}].tool_calls", self.param));
            }
        }
        Ok(text)
    }
}
