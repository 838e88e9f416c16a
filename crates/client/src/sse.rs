// SPDX-License-Identifier: Apache-2.0
//! Incremental parser of server-sent events.

use crate::{Error, Result};

/// Maximum size of an event in bytes: that of a build of many steps, which ends its log.
const EVENT_MAX: usize = 4 << 20;

/// Event as sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) kind: String,
    pub(crate) data: String,
}

/// Parser of server-sent events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    message: Message,
    size: usize,
}

impl Parser {
    /// Adds bytes and returns the messages that are complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            messages.extend(self.line(line.trim_end_matches('\r')));
            Self::bounded(self.size)?;
        }
        Self::bounded(self.buffer.len())?;
        Ok(messages)
    }

    fn bounded(size: usize) -> Result<()> {
        if size <= EVENT_MAX {
            return Ok(());
        }
        Err(Error::Protocol(format!("an event is longer than {EVENT_MAX} bytes")))
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            self.size = 0;
            let message = std::mem::take(&mut self.message);
            return (!message.data.is_empty()).then_some(message);
        }
        self.size += line.len();
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.message.kind),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // Comments keep the connection alive; the standard says to ignore unknown fields.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_give_the_same_messages() {
        let text =
            b": hello\n\nid: 7\nevent: sandbox.running\ndata: {\"a\":\ndata: 1}\n\nid:8\r\ndata:x\r\n\r\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let messages: Vec<Message> =
                text.chunks(size).flat_map(|piece| parser.feed(piece).unwrap_or_default()).collect();
            assert_eq!(messages.len(), 2, "pieces of {size}");
            assert_eq!(messages[0].id.as_deref(), Some("7"));
            assert_eq!(messages[0].kind, "sandbox.running");
            assert_eq!(messages[0].data, "{\"a\":\n1}");
            assert_eq!((messages[1].id.as_deref(), messages[1].data.as_str()), (Some("8"), "x"));
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.feed(&vec![b'x'; EVENT_MAX + 1]).is_err());
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(60_000));
        assert!((0..100).any(|_| parser.feed(line.as_bytes()).is_err()));
    }
}
