// SPDX-License-Identifier: Apache-2.0
//! Response to a command as JSON, encoded piece by piece from the raw output, so that the output is in memory
//! only once.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use wrenn_api::{Encoding, KilledProcess, SandboxId};

use crate::sandboxes::Finished;

/// Number of output bytes encoded at once: whole groups of base 64.
const PIECE: usize = 24 << 10;
/// Size in bytes below which output is never sent as base 64 if it is text.
const SMALL: usize = 64 << 10;

/// Response body.
#[derive(Debug)]
pub(super) struct ExecBody {
    parts: VecDeque<Part>,
    left: u64,
}

impl ExecBody {
    pub(super) fn new(mut ran: Finished) -> serde_json::Result<Self> {
        if ran.truncated {
            ran.lost_bytes += cut_half_character(&mut ran.stdout) + cut_half_character(&mut ran.stderr);
        }
        let encoding = encoding(&ran.stdout, &ran.stderr);
        let output = |bytes: Vec<u8>| match encoding {
            Encoding::Utf8 => Part::Text(bytes.into()),
            Encoding::Base64 => Part::Base64(bytes.into()),
        };
        let mut head = serde_json::to_vec(&Head { sandbox_id: ran.sandbox_id, cmd: &ran.cmd })?;
        head.pop();
        head.extend(br#","stdout":""#);
        let mut tail = br#"","#.to_vec();
        tail.extend(
            &serde_json::to_vec(&Tail {
                exit_code: ran.exit_code,
                timed_out: ran.timed_out,
                truncated: ran.truncated,
                lost_bytes: ran.lost_bytes,
                out_of_memory: ran.out_of_memory,
                killed: ran.killed.as_ref(),
                duration_ms: ran.duration_ms,
                encoding,
            })?[1..],
        );
        let parts = VecDeque::from([
            Part::Ready(head.into()),
            output(ran.stdout),
            Part::Ready(Bytes::from_static(br#"","stderr":""#)),
            output(ran.stderr),
            Part::Ready(tail.into()),
        ]);
        let left = parts.iter().map(|part| part.length() as u64).sum();
        Ok(Self { parts, left })
    }
}

impl Body for ExecBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while let Some(part) = self.parts.front_mut() {
            if let Some(piece) = part.piece() {
                self.left = self.left.saturating_sub(piece.len() as u64);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.parts.pop_front();
        }
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

#[derive(Serialize)]
struct Head<'a> {
    sandbox_id: SandboxId,
    cmd: &'a str,
}

#[derive(Serialize)]
struct Tail<'a> {
    exit_code: i32,
    timed_out: bool,
    truncated: bool,
    lost_bytes: u64,
    out_of_memory: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    killed: Option<&'a KilledProcess>,
    duration_ms: u64,
    encoding: Encoding,
}

/// Length of a text in a JSON string, in bytes.
fn escaped(text: &[u8]) -> usize {
    let length = |byte: &u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..32 => 6,
        _ => 1,
    };
    text.iter().map(length).sum()
}

/// Returns whether a text longer than `small` is shorter in base 64 than escaped in JSON.
pub(super) fn costly(text: &[u8], small: usize) -> bool {
    text.len() > small && escaped(text) > text.len() / 3 * 4
}

/// Removes an incomplete character from the end of a truncated output, and returns its number of bytes.
fn cut_half_character(output: &mut Vec<u8>) -> u64 {
    let Err(error) = std::str::from_utf8(output) else { return 0 };
    if error.error_len().is_some() {
        return 0;
    }
    let rest = output.len() - error.valid_up_to();
    output.truncate(error.valid_up_to());
    rest as u64
}

fn encoding(stdout: &[u8], stderr: &[u8]) -> Encoding {
    let text = |bytes| std::str::from_utf8(bytes).is_ok() && !costly(bytes, SMALL);
    if text(stdout) && text(stderr) { Encoding::Utf8 } else { Encoding::Base64 }
}

/// A part of the response that was not sent yet.
#[derive(Debug)]
enum Part {
    Ready(Bytes),
    Text(Bytes),
    Base64(Bytes),
}

impl Part {
    fn length(&self) -> usize {
        match self {
            Self::Ready(bytes) => bytes.len(),
            Self::Text(bytes) => escaped(bytes),
            Self::Base64(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }

    /// Returns the next piece; `None` at the part's end.
    fn piece(&mut self) -> Option<Bytes> {
        match self {
            Self::Ready(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Self::Text(bytes) if !bytes.is_empty() => {
                // It is UTF-8: a character ends among the last four bytes.
                let end = (0..=PIECE.min(bytes.len()))
                    .rev()
                    .find(|end| bytes.get(*end).is_none_or(|byte| byte & 0xc0 != 0x80));
                let text = String::from_utf8_lossy(&bytes[..end?]);
                let quoted = Bytes::from(serde_json::to_vec(&text).ok()?);
                bytes.advance(end?);
                Some(quoted.slice(1..quoted.len() - 1))
            }
            Self::Base64(bytes) if !bytes.is_empty() => {
                let end = PIECE.min(bytes.len());
                let piece = Bytes::from(STANDARD.encode(&bytes[..end]));
                bytes.advance(end);
                Some(piece)
            }
            Self::Text(_) | Self::Base64(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use wrenn_api::ExecResponse;

    use super::*;

    fn ran(stdout: Vec<u8>, stderr: Vec<u8>) -> Finished {
        Finished {
            sandbox_id: SandboxId::new(),
            cmd: "a \"program\"".to_owned(),
            stdout,
            stderr,
            exit_code: 3,
            timed_out: true,
            truncated: false,
            lost_bytes: 0,
            out_of_memory: true,
            killed: None,
            duration_ms: 7,
            held: None,
        }
    }

    /// Returns the response that a client receives, and its length.
    fn sent(ran: Finished) -> (ExecResponse, usize) {
        let answer = ExecBody::new(ran).expect("JSON");
        let announced = answer.size_hint().exact().expect("a length");
        let bytes = futures::executor::block_on(answer.collect()).expect("a body").to_bytes();
        assert_eq!(bytes.len() as u64, announced);
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let response: ExecResponse = serde_json::from_value(value.clone()).expect("an answer");
        assert_eq!(
            serde_json::to_value(&response).expect("JSON"),
            value,
            "every field of the documented answer"
        );
        (response, bytes.len())
    }

    fn output(text: &str, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Utf8 => text.as_bytes().to_vec(),
            Encoding::Base64 => STANDARD.decode(text).expect("base 64"),
        }
    }

    proptest! {
        #[test]
        fn every_byte_arrives(
            text in "[\\PC\\n\u{0}\u{1}\"\\\\]{0,300}", bytes: Vec<u8>, times in 1_usize..400
        ) {
            let (stdout, stderr) = (text.repeat(times).into_bytes(), bytes);
            let (response, _) = sent(ran(stdout.clone(), stderr.clone()));
            prop_assert_eq!(output(&response.stdout, response.encoding), stdout);
            prop_assert_eq!(output(&response.stderr, response.encoding), stderr);
        }
    }

    #[test]
    fn one_stream_of_bytes_makes_both_base64() {
        let (text, _) = sent(ran(b"a\n\x01".to_vec(), b"b".to_vec()));
        assert_eq!(
            (text.stdout.as_str(), text.stderr.as_str(), text.encoding),
            ("a\n\u{1}", "b", Encoding::Utf8)
        );
        let (bytes, _) = sent(ran(vec![0xff, 0, b'a'], b"b".to_vec()));
        assert_eq!(
            (bytes.stdout.as_str(), bytes.stderr.as_str(), bytes.encoding),
            ("/wBh", "Yg==", Encoding::Base64)
        );
    }

    #[test]
    fn output_grows_by_no_more_than_a_third() {
        const SIZE: usize = 1 << 20;
        for byte in [0, 1, b'"', b'\n', b'x', 0xff] {
            let (_, size) = sent(ran(vec![byte; SIZE], Vec::new()));
            assert!(size < SIZE / 3 * 4 + 1000, "{byte}: {size} bytes");
        }
    }

    #[test]
    fn what_the_kernel_killed_is_told_if_it_is_known() {
        let (unknown, _) = sent(ran(Vec::new(), Vec::new()));
        assert_eq!((unknown.out_of_memory, unknown.killed), (true, None));
        let python = KilledProcess { pid: 412, command: "\"python3".to_owned() };
        let (known, _) = sent(Finished { killed: Some(python.clone()), ..ran(Vec::new(), Vec::new()) });
        assert_eq!((known.exit_code, known.killed), (3, Some(python)));
    }

    #[test]
    fn truncated_text_stays_text() {
        let mut stdout = "é".repeat(1000).into_bytes();
        stdout.pop();
        let (response, _) = sent(Finished { truncated: true, lost_bytes: 5, ..ran(stdout, b"x".to_vec()) });
        assert_eq!((response.encoding, response.lost_bytes), (Encoding::Utf8, 6));
        assert_eq!(response.stdout, "é".repeat(999));
        let (whole, _) = sent(ran(vec![b'a', 0xc3], Vec::new()));
        assert_eq!(whole.encoding, Encoding::Base64, "what was not cut is what the program wrote");
    }
}
