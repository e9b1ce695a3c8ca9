//! Tools as requests name them and answers call them.

use super::fields;
use super::tool_calls::Call;
use super::tool_grammar::Calls;
use crate::error::ApiError;
use crate::fields::described;
use crate::random_id;
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
#[derive(Deserialize, ToSchema)]
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
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Function {
    name: String,
    description: Option<String>,
    /// JSON schema of its arguments, an object. [default: it takes none]
    #[schema(value_type = Option<Map<String, Value>>)]
    parameters: Option<Parameters>,
    /// Whether calls must follow the schema. Those that `tool_choice` forces always do; if one function asks for it, calls of
    /// all do. [default: false]
    strict: Option<bool>,
}

/// A schema as the grammar needs it, and as it was written: with all digits of its numbers.
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
                match mode {
                    "auto" => Ok(ToolChoice::Mode(ToolMode::Auto)),
                    "none" => Ok(ToolChoice::Mode(ToolMode::None)),
                    "required" => Ok(ToolChoice::Mode(ToolMode::Required)),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                NamedTool::deserialize(MapAccessDeserializer::new(map)).map(ToolChoice::Function)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// The model decides.
    Auto,
    /// It is not told of the tools.
    None,
    /// It calls one or more, and says nothing else.
    Required,
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
#[derive(Serialize, ToSchema)]
pub struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: CalledFunction,
}

/// A function and its arguments.
#[derive(Serialize, ToSchema)]
pub struct CalledFunction {
    name: String,
    /// A JSON object, as text.
    arguments: String,
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

/// A call in a stream: always a whole one.
#[derive(Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the answer's calls it is.
    index: usize,
    id: String,
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: CalledFunction,
}

impl From<ToolCallDelta> for ToolCall {
    fn from(ToolCallDelta { id, kind, function, .. }: ToolCallDelta) -> Self {
        Self { id, kind, function }
    }
}

impl ToolCallDelta {
    pub fn new(index: usize, Call { name, arguments, .. }: Call) -> Self {
        let function = CalledFunction { name, arguments };
        Self { index, id: random_id("call_"), kind: FunctionKind::Function, function }
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

/// The tools that the model is told of, and how it may call them.
pub struct ToolUse {
    tools: Vec<Tool>,
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
        let tools = tools.unwrap_or_default();
        if tools.is_empty() {
            return match choice {
                // Without tools nothing is called in any case.
                None | Some(ToolChoice::Mode(ToolMode::Auto | ToolMode::None)) => Ok(None),
                Some(ToolChoice::Mode(ToolMode::Required) | ToolChoice::Function(_)) => {
                    let message =
                        "tool_choice: there are no `tools` to be called; name some, or leave it out";
                    Err(ApiError::field("tool_choice", message))
                }
            };
        }
        let mut names = HashSet::new();
        if let Some(i) = tools.iter().position(|tool| !names.insert(tool.function.name.as_str())) {
            let param = format!("tools[{i}].function.name");
            let message = format!("{param}: there are two tools of the name {:?}", tools[i].function.name);
            return Err(ApiError::field(param, message));
        }
        let (is_forced, named) = match &choice {
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(None),
            None | Some(ToolChoice::Mode(ToolMode::Auto)) => (false, None),
            Some(ToolChoice::Mode(ToolMode::Required)) => (true, None),
            Some(ToolChoice::Function(NamedTool { function, .. })) => {
                let Some(i) = tools.iter().position(|tool| tool.function.name == function.name) else {
                    let param = "tool_choice.function.name";
                    let message = format!("{param}: there is no tool of the name {:?}", function.name);
                    return Err(ApiError::field(param, message));
                };
                (true, Some(i))
            }
        };
        Ok(Some(Self { is_forced, named, parallel: parallel.unwrap_or(true), tools }))
    }

    /// Whether the model must call.
    pub fn is_forced(&self) -> bool {
        self.is_forced
    }

    /// Whether a grammar has to keep the model's calls as they must be.
    pub fn is_constrained(&self) -> bool {
        self.is_forced || !self.parallel || self.tools.iter().any(|tool| tool.function.strict == Some(true))
    }

    /// The tools as templates expect them.
    pub fn for_template(&self) -> Vec<TemplateTool<'_>> {
        self.tools.iter().map(|tool| tool.function.for_template()).collect()
    }

    /// What the grammar of the answer is made of.
    ///
    /// # Errors
    /// 400 where the parameters of a function are no object.
    pub fn calls(&self) -> Result<Calls, ApiError> {
        let tools = self.tools.iter().enumerate();
        let tools = tools.filter(|(i, _)| self.named.is_none_or(|named| named == *i));
        let functions = tools.map(|(i, Tool { function, .. })| {
            let param = format!("tools[{i}].function.parameters");
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
        Ok(Calls { functions, is_forced: self.is_forced, parallel: self.parallel })
    }
}
