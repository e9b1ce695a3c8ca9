//! What form an answer must have.

use super::fields;
use crate::error::ApiError;
use crate::fields::described;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

described! {
    ResponseFormat: fields::RESPONSE_FORMAT,
    JsonSchema: fields::JSON_SCHEMA,
}

/// What the answer must be. [default: anything]
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<FormatKind>,
    /// Of the type `json_schema`.
    json_schema: Option<JsonSchema>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    /// Anything.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies a schema.
    JsonSchema,
}

/// A schema, always followed strictly.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct JsonSchema {
    /// The schema; without one, any object.
    schema: Option<Map<String, Value>>,
}

/// A schema, and the field that names it.
pub type NamedSchema = (&'static str, Map<String, Value>);

impl ResponseFormat {
    /// The schema of the answer, if it must have one.
    ///
    /// # Errors
    /// 400 where the type and the schema do not go together.
    pub fn schema(self) -> Result<Option<NamedSchema>, ApiError> {
        let object = || Map::from_iter([("type".into(), "object".into())]);
        let param = "response_format.json_schema";
        match (self.kind, self.json_schema) {
            (None | Some(FormatKind::Text), None) => Ok(None),
            (Some(FormatKind::JsonObject), None) => Ok(Some(("response_format", object()))),
            (Some(FormatKind::JsonSchema), Some(JsonSchema { schema })) => {
                Ok(Some(("response_format.json_schema.schema", schema.unwrap_or_else(object))))
            }
            (Some(FormatKind::JsonSchema), None) => Err(ApiError::field(
                param,
                format!("{param}: expected {{\"name\": …, \"schema\": …}}, found nothing"),
            )),
            (_, Some(_)) => {
                let message =
                    format!("{param}: only the type `json_schema` has one; take that, or leave it out");
                Err(ApiError::field(param, message))
            }
        }
    }
}
