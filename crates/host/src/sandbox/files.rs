// SPDX-License-Identifier: Apache-2.0
//! Content of a guest's files, and archives of its directories, streamed from and to its envd. What envd says is input.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, BodyStream, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    FileForm, ReadFileRequest,
    read_file_response::{Head, State},
    write_file_request::Open,
};

use super::guest::{ANSWER, Guest, checked, empty, escape, overdue, unreachable};
use crate::error::AgentError;

/// Time limit for the beginning of an archive: envd first looks at all that is to be in it.
const ARCHIVE: Duration = Duration::from_secs(60);
/// Maximum number of bytes read of envd's answer to a write.
const WRITTEN_MAX: usize = 64 << 10;
/// Maximum length in bytes of a field that describes a version.
const VERSION_MAX: usize = 256;

/// Opens a file or an archive for reading; returns what is known of it, and its content.
pub(crate) async fn read(
    guest: &Guest,
    wanted: &ReadFileRequest,
) -> Result<(Head, impl Stream<Item = Result<Bytes, AgentError>> + Send + use<>), AgentError> {
    let archive = wanted.form.as_known() == Some(FileForm::FILE_FORM_TAR);
    let mut request = guest.request(Method::GET, &query(archive, &wanted.path, &wanted.user), empty())?;
    let fields = [
        (header::RANGE, &wanted.range),
        (header::IF_RANGE, &wanted.if_range),
        (header::IF_NONE_MATCH, &wanted.if_none_match),
        (header::IF_MODIFIED_SINCE, &wanted.if_modified_since),
    ];
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        let wrong = |_| AgentError::new(ErrorCode::InvalidRequest, format!("{name} is not a field of HTTP"));
        let value = HeaderValue::try_from(value.as_str()).map_err(wrong)?;
        request.headers_mut().insert(name, value);
    }
    let limit = if archive { ARCHIVE } else { ANSWER };
    let answered = tokio::time::timeout(limit, guest.answer(request)).await.map_err(|_| overdue())??;
    let (head, response) = head(answered).await?;
    let nothing = matches!(head.state.as_known(), Some(State::STATE_UNCHANGED | State::STATE_NO_SUCH_PART));
    let content = BodyStream::new(response.into_body()).filter_map(|frame| async {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(unreachable(&error))),
        }
    });
    let content = content.take_until(guest.gone().cancelled_owned());
    let broken = guest.clone();
    let last = stream::once(async move { broken.gone().is_cancelled().then(|| Err(broken.why_gone())) });
    let content = content.chain(last.filter_map(async |error| error));
    Ok((head, content.take(if nothing { 0 } else { usize::MAX })))
}

/// Writes a file, which replaces the old one only if `content` ends without an error, or unpacks an archive. Returns the
/// number of an archive's entries.
pub(crate) async fn write(
    guest: &Guest,
    open: &Open,
    content: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
) -> Result<u64, AgentError> {
    let body = StreamBody::new(content.map(|piece| piece.map(Frame::data))).boxed_unsync();
    let (method, query) = of_write(open);
    let mut request = guest.request(method, &query, body)?;
    let kind = HeaderValue::from_static("application/octet-stream");
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    let response = checked(guest.answer(request).await?).await?;
    let told = Limited::new(response.into_body(), WRITTEN_MAX).collect();
    let told = tokio::time::timeout(ANSWER, guest.meanwhile(told)).await.map_err(|_| overdue())??;
    let told = told.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap_or_default();
    Ok(told["entries"].as_u64().unwrap_or_default())
}

/// Method and query of a write.
fn of_write(open: &Open) -> (Method, String) {
    let archive = open.form.as_known() == Some(FileForm::FILE_FORM_TAR);
    let mut query = query(archive, &open.path, &open.user);
    if !archive {
        query.push_str("&atomic=true");
        // Entries of an archive have modes of their own.
        if let Some(mode) = open.mode {
            query.push_str(&format!("&mode={mode:o}"));
        }
    }
    for (name, value) in [("owner", &open.owner), ("group", &open.group)] {
        if !value.is_empty() {
            query.push_str(&format!("&{name}={}", escape(value)));
        }
    }
    (if archive { Method::PUT } else { Method::POST }, query)
}

fn query(archive: bool, path: &str, user: &str) -> String {
    let place = if archive { "/files/archive" } else { "/files" };
    let user = if user.is_empty() { String::new() } else { format!("&username={}", escape(user)) };
    format!("{place}?path={}{user}", escape(path))
}

/// Reads what envd says of a file before its content.
async fn head(response: Response<Incoming>) -> Result<(Head, Response<Incoming>), AgentError> {
    let (status, fields) = (response.status(), response.headers());
    let length = number(fields, &header::CONTENT_LENGTH);
    let mut head = Head {
        etag: version(fields, &header::ETAG),
        last_modified: version(fields, &header::LAST_MODIFIED),
        ..Default::default()
    };
    match status {
        StatusCode::NOT_MODIFIED => head.state = State::STATE_UNCHANGED.into(),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            head.state = State::STATE_NO_SUCH_PART.into();
            head.size = text(fields, &header::CONTENT_RANGE)
                .strip_prefix("bytes */")
                .and_then(|size| size.parse().ok());
        }
        StatusCode::PARTIAL_CONTENT => {
            let none = || {
                AgentError::new(
                    ErrorCode::AgentError,
                    "the sandbox's own agent described no part of the file",
                )
            };
            let (start, end, size) = part(text(fields, &header::CONTENT_RANGE)).ok_or_else(none)?;
            head.state = State::STATE_PART.into();
            (head.start, head.length, head.size) = (start, end - start + 1, Some(size));
        }
        _ => {
            head.size = length;
            return Ok((head, checked(response).await?));
        }
    }
    Ok((head, response))
}

fn text<'a>(fields: &'a HeaderMap, name: &HeaderName) -> &'a str {
    fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn number(fields: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(fields, name).parse().ok()
}

fn version(fields: &HeaderMap, name: &HeaderName) -> String {
    Some(text(fields, name)).filter(|text| text.len() <= VERSION_MAX).unwrap_or_default().to_owned()
}

/// Parses first and last byte of a part, and the size of the file.
fn part(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, size) = (start.parse().ok()?, end.parse().ok()?, size.parse().ok()?);
    (start <= end && end < size).then_some((start, end, size))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::{prop_assert, proptest};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use wrenn_testkit::fuzz;

    use super::*;
    use crate::{
        memory::{Memory, Share},
        sandbox::guest::ERROR_SHOWN,
    };

    const ANSWERS: &[&str] = &[
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 206 Partial\r\ncontent-range: bytes 2-6/100\r\ncontent-length: 5\r\netag: \"a\"\r\n\r\nhello",
        "HTTP/1.1 416 No\r\ncontent-range: bytes */100\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 304 Same\r\netag: \"a\"\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 34\r\n\r\n{\"code\":404,\"message\":\"no\\nfile\"}  ",
        "HTTP/1.1 400 Bad\r\ncontent-length: 56\r\n\r\n{\"code\":400,\"message\":\"x\",\"reason\":\"is_a_directory\"}    ",
        "HTTP/1.1 507 \r\ncontent-length: 0\r\n\r\n",
    ];

    /// Answers every request with these bytes, and closes.
    async fn serve(listener: TcpListener, answer: Vec<u8>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            // It fails if the other side has given up.
            let _ = stream.write_all(&answer).await;
        }
    }

    async fn read_from(address: SocketAddr) -> Result<(Head, usize), AgentError> {
        let share = Share::of(Memory::new(1 << 20));
        let guest = Guest::at(address.to_string(), "", share)?;
        let wanted = ReadFileRequest { path: "/x".into(), range: "bytes=2-6".into(), ..Default::default() };
        let (head, content) = read(&guest, &wanted).await?;
        let pieces: Vec<_> = content.collect().await;
        Ok((head, pieces.into_iter().try_fold(0, |size, piece| Ok::<_, AgentError>(size + piece?.len()))?))
    }

    fn answered(answer: Vec<u8>) -> Result<(Head, usize), AgentError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::select! {
                read = read_from(address) => read,
                () = serve(listener, answer) => unreachable!("it serves for ever"),
            }
        })
    }

    #[test]
    fn a_write_names_the_owner_of_a_file_and_of_what_is_unpacked() {
        let mut open = Open {
            path: "/app".into(),
            user: "root".into(),
            mode: Some(0o640),
            owner: "ann".into(),
            group: "7".into(),
            ..Default::default()
        };
        let content = "/files?path=/app&username=root&atomic=true&mode=640&owner=ann&group=7";
        assert_eq!(of_write(&open), (Method::POST, content.to_owned()));
        open.form = FileForm::FILE_FORM_TAR.into();
        let archive = "/files/archive?path=/app&username=root&owner=ann&group=7";
        assert_eq!(of_write(&open), (Method::PUT, archive.to_owned()));
        open.owner = "a&mode=7".into();
        assert!(of_write(&open).1.contains("&owner=a%26mode%3D7&"));
        (open.owner, open.group) = (String::new(), String::new());
        assert_eq!(of_write(&open).1, "/files/archive?path=/app&username=root");
    }

    #[test]
    fn parts_are_read_as_envd_tells_them() {
        let of = |number: usize| answered(ANSWERS[number].as_bytes().to_vec());
        let (head, read) = of(2).unwrap();
        assert_eq!(
            (head.state.as_known(), head.start, head.length, head.size),
            (Some(State::STATE_PART), 2, 5, Some(100))
        );
        assert_eq!((head.etag.as_str(), read), ("\"a\"", 5));
        let (head, read) = of(3).unwrap();
        assert_eq!((head.state.as_known(), head.size, read), (Some(State::STATE_NO_SUCH_PART), Some(100), 0));
        assert_eq!(of(4).unwrap().0.state.as_known(), Some(State::STATE_UNCHANGED));
        assert_eq!(of(6).unwrap_err().code, ErrorCode::IsADirectory);
        for wrong in ["", "bytes 2-1/9", "bytes 2-9/9", "bytes 0-18446744073709551616/9", "2-3/9", "bytes -/"]
        {
            assert_eq!(part(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(fuzz::config())]

        /// A hostile guest answers what it likes: the request ends, and an error is one short line.
        #[test]
        fn whatever_a_guest_answers_the_request_ends(answer in fuzz::damaged(ANSWERS)) {
            let size = answer.len();
            match answered(answer) {
                Ok((_, read)) => prop_assert!(read <= size, "{read} bytes of {size}"),
                Err(error) => {
                    let message = error.message;
                    prop_assert!(error.code != ErrorCode::Timeout, "{message}");
                    prop_assert!(!message.contains(char::is_control), "{message:?}");
                    prop_assert!(message.chars().count() <= 2 * ERROR_SHOWN, "{message:?}");
                }
            }
        }
    }
}
