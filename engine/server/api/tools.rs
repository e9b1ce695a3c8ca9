//! Tools as requests name them and answers call them.

use super::tool_calls::Call;
use super::tool_grammar::Calls;
use crate::error::ApiError;
use crate::random_id;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use utoipa::ToSchema;

/// A function that the model may call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
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
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// JSON schema of its arguments, an object. [default: it takes none]
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Map<String, Value>>,
    /// Whether calls must follow the schema. Those that `tool_choice` forces always do; if one function asks for it, calls of
    /// all do. [default: false]
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// Whether the model calls tools.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "`auto`, `none`, `required`, or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub enum ToolChoice {
    Mode(ToolMode),
    /// This function is called.
    Function(NamedTool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
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
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalledFunction {
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
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
            for (field, is_there) in
                [("tool_choice", choice.is_some()), ("parallel_tool_calls", parallel.is_some())]
            {
                if is_there {
                    let message = format!("{field}: there are no `tools`; name some, or leave it out");
                    return Err(ApiError::field(field, message));
                }
            }
            return Ok(None);
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
    pub fn for_template(&self) -> Vec<Value> {
        // No model was trained to see `strict`.
        let functions = self.tools.iter().map(|tool| Function { strict: None, ..tool.function.clone() });
        functions.map(|function| json!({"type": "function", "function": function})).collect()
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
            let mut schema = function
                .parameters
                .clone()
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
