// SPDX-License-Identifier: Apache-2.0
//! Progress of an import from a registry that delivers slowly.

use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use tokio::sync::watch;
use wrenn_testkit::wait_until;

use super::*;

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// A registry that sends the first bytes of one blob, and the others when it is told to go on.
struct Slow {
    host: String,
    go_on: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Slow {
    async fn start(contents: Contents, slow: String, first: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let (go_on, told) = watch::channel(false);
        let all = Arc::new((contents, slow));
        let router = Router::new().fallback(move |uri: Uri| {
            let (all, told) = (all.clone(), told.clone());
            async move {
                let (contents, slow) = &*all;
                let found = contents.get(uri.path()).cloned();
                let status = if found.is_some() { 200 } else { 404 };
                let bytes = Bytes::from(found.unwrap_or_default());
                let body = if uri.path() == slow { in_two(&bytes, first, told) } else { Body::from(bytes) };
                Response::builder().status(status).body(body).expect("a response")
            }
        });
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Ok(Self { host, go_on, task })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A body that comes in two parts.
fn in_two(bytes: &Bytes, first: usize, mut told: watch::Receiver<bool>) -> Body {
    let (begin, end) = (bytes.slice(..first), bytes.slice(first..));
    let end = async move {
        // Without a sender the test has ended.
        let _ = told.wait_for(|go_on| *go_on).await;
        end
    };
    let parts = stream::once(future::ready(begin)).chain(stream::once(end));
    Body::from_stream(parts.map(Ok::<_, io::Error>))
}

#[tokio::test]
async fn an_import_tells_how_many_bytes_have_come() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let content = vec![7; 300_000];
    let layers = [layer(&[file("a", &content[..5000])])?, layer(&[file("b", &content)])?];
    let mut contents = Contents::new();
    for tag in ["latest", "same"] {
        publish(&mut contents, tag, &json!({}), &layers);
    }
    let slow = format!("/v2/team/app/blobs/{}", Digest::of(&layers[1]));
    let registry = Slow::start(contents, slow, 100_000).await?;
    let mut agent = Agent::new(&Server::start(Contents::new()).await?, ImageSettings::default()).await?;
    agent.settings.registries_plain_http = Some(registry.host.clone());
    let imports = agent.start().await?;
    let [reference, same] = ["latest", "same"].map(|tag| format!("{}/team/app:{tag}", registry.host));
    assert_eq!(imports.how_far(TEAM, &reference), None);

    let total: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let expected = HowFar { total, fetched: layers[0].len() as u64 + 100_000, unpacked: 0 };
    let mut waiting = Vec::new();
    // Under another name it is the same import.
    for name in [&reference, &same] {
        let (imports_of, name_of) = (imports.clone(), name.clone());
        waiting.push(tokio::spawn(async move { imports_of.import(TEAM, &name_of, None).await.map(drop) }));
        let has_come = async || (imports.how_far(TEAM, name) == Some(expected)).then_some(());
        let waited = wait_until("the first bytes", SOON, has_come).await;
        waited.with_context(|| format!("{name} is at {:?}", imports.how_far(TEAM, name)))?;
    }
    assert_eq!(imports.how_far("other", &reference), None, "it is told to another team");
    registry.go_on.send_replace(true);
    for import in waiting {
        timeout(SOON, import).await???;
    }
    assert_eq!(imports.how_far(TEAM, &reference), None, "it has ended");
    Ok(())
}
