//! Tools as requests name them and answers call them.

use super::fields;
use super::tool_calls::Functions;
use super::tool_grammar::Calls;
use crate::error::ApiError;
use crate::fields::described;
use crate::random_id;
use qernel_core::chat::Dialect;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::fmt;
use utoipa::ToSchema;

described! {
    Tool: fields::TOOL,
    Function: fields::FUNCTION,
    GivenCall: fields::CALL,
    GivenFunction: fields::CALLED_FUNCTION,
}

/// A function that the model may call.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Tool {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    function: Function,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionKind {
    Function,
}

/// What a function is for and what it takes.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of its arguments, an object. [default: it takes none]
    #[schema(value_type = Option<Map<String, Value>>)]
    pub parameters: Option<Parameters>,
    /// Whether calls must follow the schema. Those that `tool_choice` forces always do; if one function asks for it, calls of
    /// all do. [default: false]
    pub strict: Option<bool>,
}

/// A schema as the grammar needs it, and as it was written: with all digits of its numbers.
#[derive(Clone)]
pub struct Parameters {
    schema: Map<String, Value>,
    text: Box<RawValue>,
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let schema = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        Ok(Self { schema, text })
    }
}

impl Parameters {
    /// As it was written.
    pub fn text(&self) -> &RawValue {
        &self.text
    }
}

/// A function as templates expect it.
#[derive(Serialize)]
pub struct TemplateTool<'a> {
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: TemplateFunction<'a>,
}

/// No model was trained to see `strict`.
#[derive(Serialize)]
struct TemplateFunction<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a RawValue>,
}

/// Whether the model calls tools.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    Mode(ToolMode),
    /// This function is called.
    Function(NamedTool),
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = ToolChoice;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str(
                    "`auto`, `none`, `required`, or {\"type\": \"function\", \"function\": {\"name\": …}}",
                )
            }

            fn visit_str<E: Error>(self, mode: &str) -> Result<ToolChoice, E> {
                let fault = || E::invalid_value(serde::de::Unexpected::Str(mode), &self);
                ToolMode::named(mode).map(ToolChoice::Mode).ok_or_else(fault)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                NamedTool::deserialize(MapAccessDeserializer::new(map)).map(ToolChoice::Function)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// The model decides.
    Auto,
    /// It is not told of the tools.
    None,
    /// It calls one or more, and says nothing else.
    Required,
}

impl ToolMode {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            "required" => Some(Self::Required),
            _ => None,
        }
    }
}

impl From<ToolMode> for Choice {
    fn from(mode: ToolMode) -> Self {
        match mode {
            ToolMode::Auto => Self::Auto,
            ToolMode::None => Self::None,
            ToolMode::Required => Self::Required,
        }
    }
}

/// A tool by its name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    function: FunctionName,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionName {
    name: String,
}

/// A call that the model asks for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: CalledFunction,
}

/// A function and its arguments.
#[derive(Debug, Serialize, ToSchema)]
pub struct CalledFunction {
    name: String,
    /// A JSON object, as text; what an answer that was cut off has of it.
    arguments: String,
}

impl ToolCall {
    /// A call of this function, whose arguments are yet to come.
    pub fn new(name: String) -> Self {
        let function = CalledFunction { name, arguments: String::new() };
        Self { id: random_id("call_"), kind: FunctionKind::Function, function }
    }

    /// Adds to the arguments.
    pub fn push(&mut self, arguments: &str) {
        self.function.arguments += arguments;
    }
}

/// A call that the assistant asked for in an earlier turn.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct GivenCall {
    id: Option<String>,
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    function: GivenFunction,
}

/// A function that was called, and its arguments.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct GivenFunction {
    name: String,
    /// JSON as text; null or an empty text is the empty object.
    arguments: Option<String>,
}

impl GivenCall {
    /// The call as templates expect it: with its arguments as values.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn for_template(self) -> Result<Value, String> {
        let GivenFunction { name, arguments } = self.function;
        // Models and clients write nothing for a function that takes nothing.
        let text = arguments.as_deref().unwrap_or_default().trim();
        let arguments: Value = if text.is_empty() {
            json!({})
        } else {
            serde_json::from_str(text).map_err(|error| format!("expected JSON as text: {error}"))?
        };
        let function = json!({"name": name, "arguments": arguments});
        Ok(json!({"id": self.id, "type": "function", "function": function}))
    }
}

/// A piece of a call in a stream. The first one has all but the arguments, those that follow have those.
#[derive(Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the answer's calls it is.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<FunctionKind>,
    function: FunctionDelta,
}

/// What a piece adds to a call.
#[derive(Serialize, ToSchema)]
pub struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// What the arguments, a JSON object as text, go on with.
    arguments: String,
}

impl ToolCallDelta {
    /// The beginning of a call.
    pub fn begin(index: usize, name: String) -> Self {
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        Self { index, id: Some(random_id("call_")), kind: Some(FunctionKind::Function), function }
    }

    /// More of its arguments.
    pub fn arguments(index: usize, arguments: String) -> Self {
        Self { index, id: None, kind: None, function: FunctionDelta { name: None, arguments } }
    }
}

impl Function {
    fn for_template(&self) -> TemplateTool<'_> {
        let function = TemplateFunction {
            name: &self.name,
            description: self.description.as_deref(),
            parameters: self.parameters.as_ref().map(|parameters| &*parameters.text),
        };
        TemplateTool { kind: FunctionKind::Function, function }
    }
}

/// The names that an interface has for what is said of tools.
#[derive(Clone, Copy)]
pub struct Names {
    /// Of a tool's own name and schema, behind `tools[i].`.
    pub name: &'static str,
    pub schema: &'static str,
    /// Of the name of the tool that must be called.
    pub choice: &'static str,
}

impl Names {
    /// Chat completions'.
    pub const CHAT: Self =
        Self { name: "function.name", schema: "function.parameters", choice: "tool_choice.function.name" };
}

/// Which tools an answer calls, whatever the interface calls it.
pub enum Choice {
    Auto,
    None,
    Required,
    Named(String),
}

/// The tools that the model is told of, and how it may call them.
#[derive(Clone)]
pub struct ToolUse {
    tools: Vec<Function>,
    names: Names,
    /// It says nothing but calls.
    is_forced: bool,
    /// Of this one alone.
    named: Option<usize>,
    /// One call or more.
    parallel: bool,
}

impl ToolUse {
    /// What the fields of a request say together; `None` if it has no tools, or none that the model is to know of.
    ///
    /// # Errors
    /// 400 where they contradict each other.
    pub fn new(
        tools: Option<Vec<Tool>>,
        choice: Option<ToolChoice>,
        parallel: Option<bool>,
    ) -> Result<Option<Self>, ApiError> {
        let tools = tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect();
        let choice = match choice {
            None => Choice::Auto,
            Some(ToolChoice::Mode(mode)) => mode.into(),
            Some(ToolChoice::Function(NamedTool { function, .. })) => Choice::Named(function.name),
        };
        Self::of(tools, choice, parallel, Names::CHAT)
    }

    /// The same of any interface.
    ///
    /// # Errors
    /// 400 where tools and choice contradict each other.
    pub fn of(
        tools: Vec<Function>,
        choice: Choice,
        parallel: Option<bool>,
        names: Names,
    ) -> Result<Option<Self>, ApiError> {
        if tools.is_empty() {
            return match choice {
                // Without tools nothing is called in any case.
                Choice::Auto | Choice::None => Ok(None),
                Choice::Required | Choice::Named(_) => {
                    let message =
                        "tool_choice: there are no `tools` to be called; name some, or leave it out";
                    Err(ApiError::field("tool_choice", message))
                }
            };
        }
        let mut seen = HashSet::new();
        if let Some(i) = tools.iter().position(|tool| !seen.insert(tool.name.as_str())) {
            let param = format!("tools[{i}].{}", names.name);
            let message = format!("{param}: there are two tools of the name {:?}", tools[i].name);
            return Err(ApiError::field(param, message));
        }
        let (is_forced, named) = match choice {
            Choice::None => return Ok(None),
            Choice::Auto => (false, None),
            Choice::Required => (true, None),
            Choice::Named(name) => {
                let Some(i) = tools.iter().position(|tool| tool.name == name) else {
                    let param = names.choice;
                    let message = format!("{param}: there is no tool of the name {name:?}");
                    return Err(ApiError::field(param, message));
                };
                (true, Some(i))
            }
        };
        Ok(Some(Self { is_forced, named, parallel: parallel.unwrap_or(true), tools, names }))
    }

    /// Whether the model must call.
    pub fn is_forced(&self) -> bool {
        self.is_forced
    }

    /// Whether a grammar has to keep the model's calls as they must be.
    pub fn is_constrained(&self) -> bool {
        self.is_forced || !self.parallel || self.tools.iter().any(|tool| tool.strict == Some(true))
    }

    /// The tools as templates expect them.
    pub fn for_template(&self) -> Vec<TemplateTool<'_>> {
        self.tools.iter().map(Function::for_template).collect()
    }

    /// The functions, as answers are read with them.
    pub fn functions(&self) -> Functions {
        let schema = |tool: &Function| tool.parameters.as_ref().map(|parameters| parameters.schema.clone());
        self.tools.iter().map(|tool| (tool.name.clone(), schema(tool))).collect()
    }

    /// What the grammar of an answer in this dialect is made of.
    ///
    /// # Errors
    /// 400 where the parameters of a function are no object.
    pub fn calls(&self, dialect: Dialect) -> Result<Calls, ApiError> {
        let tools = self.tools.iter().enumerate();
        let tools = tools.filter(|(i, _)| self.named.is_none_or(|named| named == *i));
        let functions = tools.map(|(i, function)| {
            let param = format!("tools[{i}].{}", self.names.schema);
            let parameters = function.parameters.as_ref();
            let mut schema = parameters
                .map(|parameters| parameters.schema.clone())
                .unwrap_or_else(|| Map::from_iter([("additionalProperties".into(), false.into())]));
            let kind = schema.entry("type").or_insert_with(|| "object".into());
            if kind != "object" {
                let message = format!("{param}: expected the schema of an object, found the type {kind}");
                return Err(ApiError::field(param, message));
            }
            Ok((function.name.clone(), param, schema))
        });
        let functions = functions.collect::<Result<_, _>>()?;
        Ok(Calls { functions, is_forced: self.is_forced, parallel: self.parallel, dialect })
    }
}
