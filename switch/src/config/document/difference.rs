//! What differs between two documents, thing by thing and field by field.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Document, Entry, Key, Service, describe};
use crate::control::api::is_zero;

/// What is to happen to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It is to be made.
    Add,
    /// It is to go.
    Delete,
    /// It is to become another one.
    Change,
}

/// A field of a thing that is to change; `null` where it has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it is.
    pub from: Value,
    /// What it is to be.
    pub to: Value,
}

/// A thing that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What is to happen to it.
    pub change: Mark,
    /// The kind of thing.
    pub kind: String,
    /// What it is called among its kind.
    pub name: String,
    /// Of a change: the fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// How many more fields differ, where they are too many for an answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub further: u64,
}

impl Document {
    /// The keys of things that are not the same in `wanted`, in their order.
    pub fn differing<'a>(&'a self, wanted: &'a Self) -> Vec<&'a Key> {
        let gone = self.entries.keys().filter(|key| !wanted.entries.contains_key(*key));
        let other = wanted.entries.iter().filter(|(key, entry)| self.entries.get(*key) != Some(*entry));
        let mut keys: Vec<&Key> = gone.chain(other.map(|(key, _)| key)).collect();
        keys.sort_unstable();
        keys
    }

    /// What is to happen for this to become `wanted`.
    pub fn difference(&self, wanted: &Self) -> Vec<Difference> {
        let one = |key: &Key| {
            let (from, to) = (self.entries.get(key), wanted.entries.get(key));
            let change = match (from, to) {
                (None, _) => Mark::Add,
                (_, None) => Mark::Delete,
                _ => Mark::Change,
            };
            let fields = match (from, to) {
                (Some(from), Some(to)) => changed(&fields(from), &fields(to)),
                _ => Vec::new(),
            };
            Difference { change, kind: key.kind().to_owned(), name: key.name(), fields, further: 0 }
        };
        self.differing(wanted).into_iter().map(one).collect()
    }
}

/// The fields of an entry by name; of a service those of its servers under their addresses.
fn fields(entry: &Entry) -> Map<String, Value> {
    let list = |list: &[Value], name: &dyn Fn(&Map<String, Value>) -> String| {
        let named = list.iter().filter_map(|value| Some((name(value.as_object()?), value.clone())));
        named.collect::<Map<_, _>>()
    };
    let text = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let inner = match entry {
        Entry::Service(service) => serde_json::to_value(describe::service(&service.spec)).ok(),
        // An enumeration's value is in an object under its variant.
        _ => match serde_json::to_value(entry) {
            Ok(Value::Object(variant)) => variant.into_iter().next().map(|(_, value)| value),
            _ => None,
        },
    };
    let mut map = match (entry, inner) {
        (Entry::Service(Service { spec, servers }), Some(Value::Object(fields))) => {
            let servers = servers.iter().map(|server| describe::server(&spec.key, server));
            let servers: Vec<Value> = servers.filter_map(|one| serde_json::to_value(one).ok()).collect();
            fields
                .into_iter()
                .chain(list(&servers, &|one| format!("server {}", text(one, "address"))))
                .collect()
        }
        (Entry::Route(_), Some(Value::Array(ways))) => list(&ways, &|way| {
            let (via, dev) = (text(way, "via"), text(way, "dev"));
            format!("via {via} dev {dev}")
        }),
        (Entry::Nat(_), Some(Value::Object(rule))) => match rule.into_iter().next() {
            Some((_, Value::Object(fields))) => fields,
            _ => Map::new(),
        },
        (_, Some(Value::Object(map))) => map,
        _ => Map::new(),
    };
    map.retain(|_, value| !value.is_null());
    map
}

fn changed(from: &Map<String, Value>, to: &Map<String, Value>) -> Vec<Field> {
    let mut names: Vec<&String> = from.keys().chain(to.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let value = |map: &Map<String, Value>, name: &str| map.get(name).cloned().unwrap_or(Value::Null);
    names
        .into_iter()
        .filter(|name| from.get(*name) != to.get(*name))
        .map(|name| Field { name: name.clone(), from: value(from, name), to: value(to, name) })
        .collect()
}

impl Difference {
    /// One line for people: `+ port web`, `- route 10.0.0.0/8`, `~ bridge br0: ageing 300 -> 60`.
    pub fn line(&self) -> String {
        let mark = match self.change {
            Mark::Add => '+',
            Mark::Delete => '-',
            Mark::Change => '~',
        };
        let mut line = format!("{mark} {}", self.kind);
        if !self.name.is_empty() {
            let _ = write!(line, " {}", self.name);
        }
        for (number, field) in self.fields.iter().enumerate() {
            let before = if number == 0 { ":" } else { "," };
            let name = &field.name;
            let _ = match (&field.from, &field.to) {
                (Value::Null, Value::Object(_)) => write!(line, "{before} +{name}"),
                (Value::Object(_), Value::Null) => write!(line, "{before} -{name}"),
                (Value::Object(from), Value::Object(to)) => {
                    let inner: Vec<_> = changed(from, to)
                        .iter()
                        .map(|inner| format!("{} {} -> {}", inner.name, plain(&inner.from), plain(&inner.to)))
                        .collect();
                    write!(line, "{before} ~{name} ({})", inner.join(", "))
                }
                (from, to) => write!(line, "{before} {name} {} -> {}", plain(from), plain(to)),
            };
        }
        if self.further > 0 {
            let _ = write!(line, ", and {} more", self.further);
        }
        line
    }
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "default".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let list: Vec<_> = list.iter().map(plain).collect();
            format!("[{}]", list.join(" "))
        }
        other => other.to_string(),
    }
}
