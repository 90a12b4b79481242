//! What is said on stderr: for people, or for programs that read a JSON object from each line.

use std::io::Write;

use clap::ValueEnum;
use env_logger::Target;
use log::kv::{self, Key, Value, VisitSource};
use serde_json::{Map, json};

use crate::stderr::Stderr;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A sentence
    #[default]
    Text,
    /// An object with `time`, `level`, `message` and, of what happens in sessions, `event` and its fields
    Json,
}

/// From now on all that is logged goes there.
pub(crate) fn start(verbose: bool, format: LogFormat, stderr: &Stderr) {
    let level = if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).target(Target::Pipe(Box::new(stderr.clone())));
    match format {
        LogFormat::Text => builder.format(|out, record| writeln!(out, "virbistream: {}", record.args())),
        LogFormat::Json => builder.format(|out, record| {
            let mut fields = Fields(Map::new());
            // It fails only where a visitor does.
            let _ = record.key_values().visit(&mut fields);
            let mut line = fields.0;
            line.insert("time".into(), json!(out.timestamp_micros().to_string()));
            line.insert("level".into(), json!(record.level().as_str().to_lowercase()));
            line.insert("message".into(), json!(record.args().to_string()));
            writeln!(out, "{}", serde_json::Value::from(line))
        }),
    };
    builder.init();
}

struct Fields(Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let value = value.to_u64().map_or_else(|| json!(value.to_string()), |number| json!(number));
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}
