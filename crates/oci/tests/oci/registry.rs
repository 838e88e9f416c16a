// SPDX-License-Identifier: Apache-2.0
//! Images in registries that are far away, private, busy, broken or lying.

use std::time::Duration;

use axum::body::Body;
use serde_json::json;
use wrenn_oci::{
    Credentials, Descriptor, Digest, Image, ImageSource as _, Platform, Registry, RegistryOptions,
    SourceError,
};

use crate::support::{
    fetched,
    images::Images,
    server::{Asked, Server, broken, contents, part, plain, with_headers},
};

/// `app:secret` in base 64.
const ACCOUNT: &str = "Basic YXBwOnNlY3JldA==";

fn options() -> RegistryOptions {
    RegistryOptions {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(20),
        idle_limit: Duration::from_secs(20),
        ..RegistryOptions::default()
    }
}

fn with_account(password: &str) -> RegistryOptions {
    let credentials = Credentials { username: "app".to_owned(), password: password.to_owned() };
    RegistryOptions { credentials: Some(credentials), ..options() }
}

fn image(server: &Server, selector: &str, options: RegistryOptions) -> Registry {
    let reference = format!("{}/team/app{selector}", server.host);
    Registry::new(reference.parse().expect("a reference"), options).expect("a source")
}

async fn resolved(server: &Server, options: RegistryOptions) -> Result<Image, SourceError> {
    image(server, ":latest", options).resolve(&Platform::linux("amd64")).await
}

/// An image with one large blob as its only layer, and the descriptor of that.
fn large() -> (Images, Descriptor, Vec<u8>) {
    let layer: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let mut images = Images::default();
    images.add("linux/amd64", &[(layer.clone(), layer.clone())]);
    let descriptor = json!({ "digest": Digest::of(&layer), "size": layer.len() });
    (images, serde_json::from_value(descriptor).expect("a descriptor"), layer)
}

#[tokio::test]
async fn an_image_is_resolved_for_its_platform_and_pinned() {
    let mut images = Images::of(&["linux/arm64/v8", "linux/amd64", "linux/amd64/v3"]);
    let digest: Digest = serde_json::from_value(images.manifests[1]["digest"].clone()).unwrap();
    images.manifests.push(json!({
        "mediaType": "x", "digest": Digest::of(b"attestation"), "size": 1,
        "platform": { "os": "unknown", "architecture": "unknown" },
    }));
    let server = Server::start(contents(&images), |_, _| None).await;
    let source = image(&server, "", options());
    let image_of_amd = source.resolve(&Platform::linux("amd64")).await.unwrap();
    assert_eq!((image_of_amd.digest, image_of_amd.config.user.as_str()), (digest, "app"));
    for (descriptor, diff_id) in image_of_amd.layers() {
        let layer = fetched(&source, descriptor).await.unwrap();
        assert_eq!(Digest::of(&layer), diff_id);
    }
    let accept = server.asked("manifests/latest")[0].header("accept").to_owned();
    assert!(
        accept.contains("oci.image.index") && accept.contains("docker.distribution.manifest.list"),
        "{accept}"
    );
    // By digest: of the manifest, and of the index.
    for pinned in [digest, Digest::of(&images.index())] {
        let mut contents = contents(&images);
        contents.insert(format!("/v2/team/app/manifests/{}", Digest::of(&images.index())), images.index());
        let server = Server::start(contents, |_, _| None).await;
        let source = image(&server, &format!("@{pinned}"), options());
        assert_eq!(source.resolve(&Platform::linux("amd64")).await.unwrap().digest, digest);
        assert!(server.asked("latest").is_empty());
    }
    let error = source.resolve(&Platform::linux("riscv64")).await.unwrap_err().to_string();
    assert!(error.contains("linux/riscv64"), "{error}");
    assert!(error.contains("linux/amd64, linux/amd64/v3, linux/arm64/v8"), "{error}");
}

#[tokio::test]
async fn an_image_without_an_index_is_refused_if_it_is_made_for_another_machine() {
    let images = Images::of(&["linux/arm64"]);
    let mut contents = contents(&images);
    let digest = images.manifests[0]["digest"].as_str().unwrap();
    let manifest = contents[&format!("/v2/team/app/manifests/{digest}")].clone();
    contents.insert("/v2/team/app/manifests/latest".to_owned(), manifest);
    let server = Server::start(contents, |_, _| None).await;
    let error = resolved(&server, options()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Platform { has, .. } if has == "linux/arm64"), "{error}");
}

#[tokio::test]
async fn tokens_and_accounts_go_to_the_registry_and_nowhere_else() {
    let token = ("Bearer realm=\"REALM\",service=\"store\"", "Bearer t0k3n");
    for (asks, proof) in [token, ("Basic realm=\"x\"", ACCOUNT)] {
        let (images, descriptor, layer) = large();
        let store = Server::start(contents(&images), |asked, _| {
            let named = asked.headers.contains_key("authorization");
            named.then(|| plain(400, "only one way to prove who one is"))
        })
        .await;
        let store_url = format!("http://{}", store.host);
        let registry = Server::start(contents(&images), move |asked, _| {
            if asked.path == "/token" {
                let well = asked.header("authorization") == ACCOUNT
                    && asked.query == "scope=repository%3Ateam%2Fapp%3Apull&service=store";
                return Some(if well { plain(200, r#"{"token":"t0k3n"}"#) } else { plain(401, "{}") });
            }
            if asked.header("authorization") != proof {
                let asks = asks.replace("REALM", &format!("http://{}/token", asked.header("host")));
                return Some(with_headers(401, &[("www-authenticate", &asks)], Body::empty()));
            }
            let place = format!("{store_url}{}", asked.path);
            asked.path.contains("blobs").then(|| with_headers(307, &[("location", &place)], Body::empty()))
        })
        .await;
        let source = image(&registry, ":latest", with_account("secret"));
        source.resolve(&Platform::linux("amd64")).await.unwrap();
        assert!(fetched(&source, &descriptor).await.unwrap() == layer);
        assert_eq!(store.asked("").len(), 2, "configuration and layer");
        for options in [options(), with_account("wrong")] {
            let error = resolved(&registry, options).await.unwrap_err();
            assert!(matches!(error, SourceError::Denied { .. }), "{asks}: {error}");
            assert!(!error.to_string().contains("wrong"));
        }
    }
    assert!(!format!("{:?}", with_account("secret")).contains("secret"));
}

#[tokio::test]
async fn a_store_that_asks_for_an_account_gets_none() {
    let (images, descriptor, _) = large();
    let store = Server::start(contents(&images), |_, _| {
        Some(with_headers(401, &[("www-authenticate", "Basic realm=x")], Body::empty()))
    })
    .await;
    let store_url = format!("http://{}", store.host);
    let registry = Server::start(contents(&images), move |asked, _| {
        let place = format!("{store_url}{}", asked.path);
        asked.path.contains("blobs").then(|| with_headers(307, &[("location", &place)], Body::empty()))
    })
    .await;
    let error = fetched(&image(&registry, "", with_account("secret")), &descriptor).await.unwrap_err();
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    assert!(store.asked("").iter().all(|asked| asked.header("authorization").is_empty()));
}

#[tokio::test]
async fn redirects_are_few_and_lead_to_no_files() {
    let (images, descriptor, _) = large();
    for place in ["file:///etc/passwd", "/v2/team/app/manifests/latest", "http://[", ""] {
        let server = Server::start(contents(&images), move |_, _| {
            Some(with_headers(302, &[("location", place)], Body::empty()))
        })
        .await;
        let error = fetched(&image(&server, "", options()), &descriptor).await.unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{place}: {error}");
        assert!(server.asked("").len() <= 6, "{place}");
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke() {
    for (still, ranges) in [(false, true), (true, true), (false, false)] {
        let (images, descriptor, layer) = large();
        let bytes = layer.clone();
        let server = Server::start(contents(&images), move |asked, _| {
            let from = if ranges { asked.offset() } else { 0 };
            match asked.before {
                _ if !asked.path.contains(&Digest::of(&bytes).to_string()) => None,
                0 => Some(broken(&bytes, from, 3000, still)),
                // Each time without a byte, or with none that is new.
                1 => Some(broken(&bytes, from, 0, false)),
                _ => Some(part(&bytes, from)),
            }
        })
        .await;
        let options = RegistryOptions { idle_limit: Duration::from_secs(2), ..options() };
        assert!(
            fetched(&image(&server, "", options), &descriptor).await.unwrap() == layer,
            "{still} {ranges}"
        );
        let asked: Vec<_> = server.asked("blobs").iter().map(Asked::offset).collect();
        assert_eq!(asked, [0, 3000, 3000], "{still} {ranges}");
    }
}

#[tokio::test]
async fn a_download_that_gets_no_further_is_given_up() {
    let (images, descriptor, layer) = large();
    let server =
        Server::start(contents(&images), move |asked, _| Some(broken(&layer, asked.offset(), 0, false)))
            .await;
    let error = fetched(&image(&server, "", options()), &descriptor).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert_eq!(server.asked("").len(), 3);
}

#[tokio::test]
async fn failures_that_may_pass_are_tried_again_and_not_for_ever() {
    for status in [429, 500, 503] {
        let images = Images::of(&["linux/amd64"]);
        let server = Server::start(contents(&images), move |asked, _| {
            (asked.before < 2).then(|| with_headers(status, &[("retry-after", "3600")], Body::empty()))
        })
        .await;
        resolved(&server, options()).await.unwrap();
        let server = Server::start(contents(&images), move |_, _| Some(plain(status, ""))).await;
        let error = resolved(&server, options()).await.unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        assert_eq!(server.asked("").len(), 3);
    }
    for status in [404, 403, 418] {
        let server = Server::start(contents(&Images::default()), move |_, _| Some(plain(status, ""))).await;
        assert!(resolved(&server, options()).await.is_err());
        assert_eq!(server.asked("").len(), 1, "{status}");
    }
    // Nobody listens there any more.
    let server = Server::start(contents(&Images::default()), |_, _| None).await;
    let source = image(&server, "", options());
    let host = server.host.clone();
    drop(server);
    while tokio::net::TcpStream::connect(&host).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let error = source.resolve(&Platform::linux("amd64")).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn what_a_registry_lies_about_is_found_out() {
    let (images, descriptor, layer) = large();
    let manifest: Digest = serde_json::from_value(images.manifests[0]["digest"].clone()).unwrap();
    let mut other = layer.clone();
    other[100_000] ^= 1;
    let longer = [&layer[..], b"x"].concat();
    for (path, wrong) in [
        (format!("blobs/{}", Digest::of(&layer)), other),
        (format!("blobs/{}", Digest::of(&layer)), longer),
        (format!("blobs/{}", Digest::of(&layer)), layer[..1000].to_vec()),
        (format!("manifests/{manifest}"), [&images.blobs[&manifest][..], b" "].concat()),
    ] {
        let server = Server::start(contents(&images), move |asked, _| {
            asked.path.contains(&path).then(|| part(&wrong, asked.offset()))
        })
        .await;
        let source = image(&server, "", options());
        let error = match source.resolve(&Platform::linux("amd64")).await {
            Ok(_) => fetched(&source, &descriptor).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn what_a_registry_sends_is_bounded() {
    let (images, descriptor, _) = large();
    let server = Server::start(contents(&images), |asked, _| {
        asked.path.contains("latest").then(|| plain(200, &" ".repeat(5 << 20)))
    })
    .await;
    let error = resolved(&server, options()).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error}");
    let options = RegistryOptions { blob_bytes: descriptor.size - 1, ..options() };
    let error = fetched(&image(&server, "", options), &descriptor).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error}");
    assert!(server.asked("blobs").is_empty());
}
