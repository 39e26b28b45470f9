#![forbid(unsafe_code)]
//! Recorded instruction counts and the limits made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Instructions a benchmark took when it was recorded, by `function/benchmark`.
pub type Recorded = BTreeMap<String, u64>;

const RECORDED: &str = include_str!("../gates.json");
/// What is more than this above the record is a failure, in percent.
const TOLERANCE: u64 = 3;

/// Where the record lies in the source tree.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gates.json")
}

/// Most instructions that the benchmark `name` may take; none if it has not been recorded yet.
pub fn limit(name: &str) -> Option<u64> {
    let recorded: Recorded = serde_json::from_str(RECORDED).unwrap_or_default();
    recorded.get(name).map(|count| count + count * TOLERANCE / 100)
}

/// Collects the counts of the last run from the summaries that gungraun saved below `dir` and writes the record.
pub fn update(dir: &Path) -> Result<Recorded> {
    let mut recorded = Recorded::new();
    collect(dir, &mut recorded)?;
    ensure!(
        !recorded.is_empty(),
        "no summary.json below {}: run the gates with GUNGRAUN_SAVE_SUMMARY=json",
        dir.display()
    );
    std::fs::write(path(), serde_json::to_string_pretty(&recorded)? + "\n")?;
    Ok(recorded)
}

fn collect(dir: &Path, recorded: &mut Recorded) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, recorded)?;
        } else if path.file_name().is_some_and(|name| name == "summary.json") {
            let summary: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
            let (name, count) = read(&summary).with_context(|| format!("in {}", path.display()))?;
            recorded.insert(name, count);
        }
    }
    Ok(())
}

/// `function/benchmark` and the instructions of a summary (gungraun's format 7).
fn read(summary: &Value) -> Result<(String, u64)> {
    let text = |key: &str| summary[key].as_str().with_context(|| format!("no {key}"));
    let name = format!("{}/{}", text("function_name")?, text("id")?);
    let count = summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"].as_u64();
    Ok((name.clone(), count.with_context(|| format!("no instruction count for {name}"))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_found_in_a_summary() {
        let summary = json!({
            "function_name": "forward", "id": "small",
            "profiles": [{ "data": { "total": { "metrics": { "Ir": { "values": { "new": 1234, "old": 1300 } } } } } }]
        });
        assert_eq!(read(&summary).expect("a count"), ("forward/small".to_owned(), 1234));
    }

    #[test]
    fn every_gate_has_a_record() {
        let recorded: Recorded = serde_json::from_str(RECORDED).expect("gates.json");
        let gates = include_str!("../benches/gates.rs");
        let mut count = 0;
        for name in gates.split("config = gate(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(recorded.contains_key(name), "{name} is not in gates.json: run `make gates-update`");
            count += 1;
        }
        assert_eq!(count, recorded.len(), "gates.json has entries of benchmarks that are gone");
    }
}
