// SPDX-License-Identifier: Apache-2.0
//! Direct calls to the envd of a sandbox, as its own clients make them.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::Stack;

/// Reads the address of envd and its token from the agent's journal: the last slot counts, because a resume takes another.
pub fn address_and_token(stack: &Stack, id: &str) -> Result<(String, String)> {
    let path = stack.state_dir.join("agent/sandboxes").join(id).join("journal.json");
    let text = fs::read_to_string(&path).context("the sandbox has no journal")?;
    let entries: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let field = |step: &str, name: &str| {
        entries.iter().rfind(|entry| entry["step"] == step).map(|entry| entry[name].clone())
    };
    let slot = field("slot", "index").and_then(|slot| slot.as_u64()).context("no slot in the journal")?;
    let token = field("spec", "access_token").and_then(|token| token.as_str().map(str::to_owned));
    let address = format!("10.11.{}.{}:49983", slot >> 8, slot & 255);
    Ok((address, token.context("no token in the journal")?))
}

/// Encodes one message as Connect streams do.
pub fn framed(message: &Value) -> Vec<u8> {
    let body = message.to_string().into_bytes();
    [&[0], (body.len() as u32).to_be_bytes().as_slice(), &body].concat()
}
