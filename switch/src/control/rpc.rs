//! JSON-RPC 2.0, one object a line: reading a request, writing an answer (<https://www.jsonrpc.org/specification>).
//!
//! A line is read twice: first for what every request has, skipping the parameters, then for the parameters of its
//! method, straight into their type. Nothing is built of what nobody asked for, however long the line.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::config::spec::Invalid;
use crate::refusal::Refusal;

/// Longest line, request or answer, in bytes, without its line feed.
pub const LINE_MAX: usize = 16 << 20;

/// The line is no JSON.
pub const PARSE_ERROR: i32 = -32700;
/// The line is JSON, but no request.
pub const INVALID_REQUEST: i32 = -32600;
/// There is no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// The parameters are not those of the method, or a value breaks a rule.
pub const INVALID_PARAMS: i32 = -32602;
/// The daemon is at fault.
pub const INTERNAL_ERROR: i32 = -32603;
/// The request is right, but the switch cannot do it: the message says why.
pub const REFUSED: i32 = -32000;
/// The connection is not served (who asks may not, or there are too many).
pub const NOT_SERVED: i32 = -32001;

/// What a client calls its request, given back with the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(String),
    /// `null`: also the answer to what could not be read far enough to find one.
    Null,
}

/// A failure as it stands in an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Error {
    /// One of the codes of this module.
    pub code: i32,
    /// One line for people.
    pub message: String,
    /// More for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// What a program can know about a failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorData {
    /// The parameter that breaks a rule.
    pub field: String,
    /// Which element of it, where it is a list, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What kind of failure it is, where the method's description lists kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl Error {
    /// An error with this code and message.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: Refusal::new(message).to_string(), data: None }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self { code: REFUSED, message: refusal.to_string(), data: None }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        let data = Some(ErrorData { field: invalid.field.to_owned(), index: None, kind: None });
        Self { code: INVALID_PARAMS, message: invalid.to_string(), data }
    }
}

/// What is known of a request before its parameters are looked at.
#[derive(Debug, PartialEq)]
pub struct Head {
    /// `None` for a notification, which gets no answer.
    pub id: Option<Id>,
    /// The method, whether there is one of that name or not.
    pub method: String,
    has_params: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHead<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(default, deserialize_with = "given")]
    id: Option<Id>,
    #[serde(default)]
    params: Params,
}

/// Tells `null` from nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Id>, D::Error> {
    match Id::deserialize(deserializer) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(serde::de::Error::custom("id must be a number, a text or null")),
    }
}

#[derive(Default)]
enum Params {
    #[default]
    Absent,
    Object,
}

impl<'de> Deserialize<'de> for Params {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Params;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("params to be an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Params, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Params::Object)
            }
        }
        deserializer.deserialize_any(Object)
    }
}

/// One line for what serde found wrong, in words of JSON instead of Rust.
pub fn explain(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace('`', "\"")
        .replace(" i64", " an integer")
        .replace(" u64", " a number of 0 or more")
}

/// Reads what every request has.
///
/// # Errors
/// What to answer, with the identifier [`Id::Null`].
pub fn head(line: &[u8]) -> Result<Head, Error> {
    let text = std::str::from_utf8(line).map_err(|_| Error::new(PARSE_ERROR, "the line is no UTF-8 text"))?;
    if text.trim_start().starts_with('[') {
        // Valid JSON or not, it is none of ours.
        let rule = "a batch is not supported: send its requests one a line, they are answered in order";
        return Err(Error::new(INVALID_REQUEST, rule));
    }
    let raw: RawHead<'_> = serde_json::from_str(text).map_err(|error| match error.is_data() {
        true => Error::new(INVALID_REQUEST, format!("the line is no request: {}", explain(&error))),
        false => Error::new(PARSE_ERROR, format!("the line is no JSON: {}", explain(&error))),
    })?;
    if raw.jsonrpc != "2.0" {
        let got = raw.jsonrpc;
        return Err(Error::new(
            INVALID_REQUEST,
            format!("jsonrpc {got:?} is not spoken here: it must be \"2.0\""),
        ));
    }
    let has_params = matches!(raw.params, Params::Object);
    Ok(Head { id: raw.id, method: raw.method.into_owned(), has_params })
}

/// Reads the parameters of a request whose head was read from the same line. Without parameters it is as if they
/// were `{}`.
///
/// # Errors
/// What to answer.
pub fn params<P: DeserializeOwned>(head: &Head, line: &[u8]) -> Result<P, Error> {
    #[derive(Deserialize)]
    #[serde(bound = "P: DeserializeOwned")]
    struct Body<P> {
        params: P,
    }
    let read = match head.has_params {
        true => serde_json::from_slice::<Body<P>>(line).map(|body| body.params),
        false => serde_json::from_str("{}"),
    };
    read.map_err(|error| {
        let (method, why) = (&head.method, explain(&error));
        match culprit::<P>(line) {
            Some(field) => {
                let message = Error::new(INVALID_PARAMS, format!("{method}: {field}: {why}"));
                Error { data: Some(ErrorData { field, index: None, kind: None }), ..message }
            }
            None => Error::new(INVALID_PARAMS, format!("{method}: {why}")),
        }
    })
}

/// The parameter of the wrong type, if it is one: that without which something else is wrong, or nothing.
fn culprit<P: DeserializeOwned>(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        params: serde_json::Map<String, Value>,
    }
    // Not worth a large tree, nor many trials.
    if line.len() > 1 << 16 {
        return None;
    }
    let params = serde_json::from_slice::<Body>(line).ok()?.params;
    if params.len() > 32 {
        return None;
    }
    let wrong =
        |params| serde_json::from_value::<P>(Value::Object(params)).err().map(|error| error.to_string());
    let first = wrong(params.clone()).filter(|error| error.starts_with("invalid"))?;
    let is_culprit = |key: &&String| {
        let mut others = params.clone();
        others.remove(*key);
        wrong(others).as_ref() != Some(&first)
    };
    params.keys().find(is_culprit).cloned()
}

#[derive(Serialize)]
struct Success<'a, T> {
    jsonrpc: &'static str,
    id: &'a Id,
    result: &'a T,
}

#[derive(Serialize)]
struct Failure<'a> {
    jsonrpc: &'static str,
    id: &'a Id,
    error: &'a Error,
}

/// A line, with its line feed, that answers the request `id` with `result`.
///
/// # Errors
/// The answer would be longer than [`LINE_MAX`].
pub fn success<T: Serialize>(id: &Id, result: &T) -> Result<Vec<u8>, Error> {
    let mut line = serde_json::to_vec(&Success { jsonrpc: "2.0", id, result })
        .map_err(|e| Error::new(INTERNAL_ERROR, format!("the answer cannot be written: {e}")))?;
    if line.len() > LINE_MAX {
        let length = line.len();
        return Err(Error::new(
            INTERNAL_ERROR,
            format!("the answer of {length} bytes is longer than a line may be ({LINE_MAX})"),
        ));
    }
    line.push(b'\n');
    Ok(line)
}

/// A line, with its line feed, that tells why the request `id` failed.
pub fn failure(id: &Id, error: &Error) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Failure { jsonrpc: "2.0", id, error }).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api;

    fn code(line: &str) -> i32 {
        head(line.as_bytes()).unwrap_err().code
    }

    #[test]
    fn heads_are_read() {
        let line = br#" {"params": {"name": "br0"}, "id": 7, "method": "bridge.show", "jsonrpc": "2.0"} "#;
        let head = head(line).unwrap();
        assert_eq!((head.id.clone(), head.method.as_str()), (Some(Id::Number(7.into())), "bridge.show"));
        assert_eq!(params::<api::BridgeShow>(&head, line).unwrap().name, "br0");
    }

    #[test]
    fn identifiers_are_numbers_texts_null_or_none() {
        let id = |text: &str| {
            head(format!(r#"{{"jsonrpc":"2.0","method":"a.b"{text}}}"#).as_bytes()).map(|h| h.id)
        };
        assert_eq!(id(""), Ok(None));
        assert_eq!(id(r#","id":null"#), Ok(Some(Id::Null)));
        assert_eq!(id(r#","id":"\n1""#), Ok(Some(Id::Text("\n1".into()))));
        assert!(matches!(id(r#","id":-1.5"#), Ok(Some(Id::Number(_)))));
        assert_eq!(id(r#","id":[1]"#).unwrap_err().code, INVALID_REQUEST);
        assert_eq!(id(r#","id":{}"#).unwrap_err().code, INVALID_REQUEST);
        assert_eq!(id(r#","id":true"#).unwrap_err().code, INVALID_REQUEST);
    }

    #[test]
    fn errors_have_the_codes_of_the_specification() {
        for line in ["", "x", "{", "{\"jsonrpc\":\"2.0\",", "\u{0}", "{}{}", "{\"a\":1}}"] {
            let got = code(line);
            assert!(got == PARSE_ERROR || got == INVALID_REQUEST, "{line}: {got}");
        }
        assert_eq!(code("{"), PARSE_ERROR);
        assert_eq!(head(b"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\"}").unwrap_err().code, PARSE_ERROR);
        for line in [
            "1",
            "null",
            "\"text\"",
            "[]",
            r#"[{"jsonrpc":"2.0","method":"a.b","id":1}]"#,
            "{}",
            r#"{"jsonrpc":"1.0","method":"a.b","id":1}"#,
            r#"{"jsonrpc":"2.0","method":5,"id":1}"#,
            r#"{"jsonrpc":"2.0","method":"a.b","method":"c.d","id":1}"#,
            r#"{"jsonrpc":"2.0","method":"a.b","id":1,"extra":1}"#,
            r#"{"jsonrpc":"2.0","method":"a.b","id":1,"params":[1]}"#,
            r#"{"jsonrpc":"2.0","method":"a.b","id":1,"params":"x"}"#,
        ] {
            assert_eq!(code(line), INVALID_REQUEST, "{line}");
        }
        let deep =
            format!(r#"{{"jsonrpc":"2.0","method":"a.b","id":1,"params":{{"a":{}"#, "[".repeat(1 << 20));
        assert_eq!(code(&deep), PARSE_ERROR);
    }

    #[test]
    fn parameters_are_those_of_the_method() {
        let wrong = |text: &str| {
            let line = format!(r#"{{"jsonrpc":"2.0","method":"bridge.add","id":1{text}}}"#);
            let head = head(line.as_bytes()).unwrap();
            let error = params::<api::BridgeAdd>(&head, line.as_bytes()).unwrap_err();
            assert_eq!(error.code, INVALID_PARAMS);
            error.message
        };
        assert!(wrong("").starts_with("bridge.add: missing field \"name\""));
        assert!(wrong(r#","params":{"name":"a","mtu":5}"#).starts_with("bridge.add: unknown field \"mtu\""));
        let message = wrong(r#","params":{"name":"a","ageing":"5"}"#);
        assert!(
            message.starts_with("bridge.add: ageing: invalid type: string \"5\", expected an integer"),
            "{message}"
        );
        let message = wrong(r#","params":{"ageing":5,"name":true}"#);
        assert!(
            message.starts_with("bridge.add: name: invalid type: boolean \"true\", expected a string"),
            "{message}"
        );
        assert!(wrong(r#","params":{"name":"a","ageing":1e99}"#).contains("expected an integer"));
        let head = head(br#"{"jsonrpc":"2.0","method":"port.list"}"#).unwrap();
        assert!(params::<api::PortList>(&head, b"").is_ok());
    }

    #[test]
    fn an_answer_is_one_line() {
        let line = failure(&Id::Text("a\nb".into()), &Error::new(REFUSED, "x\ny"));
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        let line = success(&Id::Number(1.into()), &api::Done {}).unwrap();
        assert_eq!(line, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
        assert_eq!(success(&Id::Null, &"x".repeat(LINE_MAX)).unwrap_err().code, INTERNAL_ERROR);
    }
}
