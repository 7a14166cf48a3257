//! JWTs. `signers` holds keys that sign here and nowhere else.

use crate::{
    cluster::{Cluster, Layout, cat},
    keys::{KeyFile, entry, generate, get_model, with},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp, jwk::Jwk};
use sdxl_coordinator::{AccessConfig, JwtConfig};
use sdxl_proto::v1;
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;
use tonic::{Code, Status};

struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

fn signers() -> [Signer; 3] {
    let (rsa, ec, ed): (&[u8], &[u8], &[u8]) = (
        include_bytes!("signers/rsa.der"),
        include_bytes!("signers/ec.der"),
        include_bytes!("signers/ed.der"),
    );
    [
        Signer { id: "rsa", algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(rsa) },
        Signer { id: "ec", algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(ec) },
        Signer { id: "ed", algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(ed) },
    ]
}

/// The one that comes after that of the same algorithm.
fn next_signer() -> Signer {
    let key = EncodingKey::from_ec_der(include_bytes!("signers/ec-next.der"));
    Signer { id: "ec-next", algorithm: Algorithm::ES256, key }
}

impl Signer {
    /// As a JWKS has it.
    fn public(&self) -> Value {
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        jwk["kid"] = self.id.into();
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// What is to be said, changed by `more`; null takes a claim away.
fn claims(more: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer", "aud": "sdxl", "sub": "team-sub", "exp": get_current_timestamp() + 60
    });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// A coordinator that takes tokens, and what must live as long as it.
async fn start(jwks: &[Value], keys: Option<&KeyFile>) -> (Cluster, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), json!({ "keys": jwks }).to_string()).unwrap();
    let jwt =
        JwtConfig { keys: file.path().to_owned(), issuer: "https://issuer".into(), audience: "sdxl".into() };
    let keys = keys.and_then(|keys| keys.access().keys);
    let access = AccessConfig { keys, jwt: Some(jwt) };
    (Cluster::start(Layout { access, ..Layout::default() }).await, file)
}

async fn refusal(cluster: &Cluster, token: &str) -> Status {
    let status = generate(cluster, token, cat()).await.expect_err("it is refused");
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(!format!("{status:?}").contains(&token[..token.len().min(20)]), "it repeats the token");
    status
}

#[tokio::test]
async fn a_token_of_each_algorithm_names_its_tenant() {
    let signers = signers();
    let (cluster, _file) = start(&signers.each_ref().map(Signer::public), None).await;
    for signer in &signers {
        for (more, _) in [(json!({}), "team-sub"), (json!({ "sdxl_tenant": "team-7" }), "team-7")] {
            generate(&cluster, &signer.sign(&claims(&more)), cat()).await.unwrap();
        }
        let several = claims(&json!({ "aud": ["other", "sdxl"], "nbf": get_current_timestamp() }));
        generate(&cluster, &signer.sign(&several), cat()).await.unwrap();
    }
    let log = cluster.base_unet[0].log.denoises.lock().unwrap();
    let tenants: Vec<_> = log.iter().map(|seen| seen.metadata.get("sdxl-tenant").unwrap()).collect();
    assert_eq!(tenants, ["team-sub", "team-7", "team-sub"].repeat(3));
}

#[tokio::test]
async fn what_a_token_must_say_is_checked() {
    let signers = signers();
    let (cluster, _file) = start(&signers.each_ref().map(Signer::public), None).await;
    let now = get_current_timestamp();
    let cases = [
        (json!({ "exp": now - 15 }), "expired"),
        (json!({ "exp": null }), "lacks exp"),
        (json!({ "exp": "soon" }), "lacks exp"),
        (json!({ "nbf": now + 60 }), "not valid yet"),
        (json!({ "iss": "https://other" }), "another issuer"),
        (json!({ "iss": null }), "lacks exp, iss or aud"),
        (json!({ "aud": "other" }), "another audience"),
        (json!({ "aud": null }), "lacks exp, iss or aud"),
        (json!({ "sub": null }), "names no tenant"),
        (json!({ "sub": "two words" }), "not a tenant's name"),
        (json!({ "sdxl_tenant": "" }), "not a tenant's name"),
        (json!({ "sdxl_tenant": 7 }), "not valid here"),
    ];
    for signer in &signers {
        for (more, said) in &cases {
            let status = refusal(&cluster, &signer.sign(&claims(more))).await;
            assert!(status.message().contains(said), "{more}: {status}");
        }
        // Clocks may differ a little.
        generate(&cluster, &signer.sign(&claims(&json!({ "exp": now - 1 }))), cat()).await.unwrap();
    }
    assert_eq!(cluster.base_unet[0].denoises(), 3);
}

#[tokio::test]
async fn no_token_chooses_how_it_is_verified() {
    let signers = signers();
    let [rsa, ec, _] = &signers;
    let secret = json!({ "kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode("secret"), "alg": "HS256" });
    let (cluster, _file) = start(&[rsa.public(), secret], None).await;
    let good = rsa.sign(&claims(&json!({})));
    generate(&cluster, &good, cat()).await.unwrap();

    let [_, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    for algorithm in ["none", "None", "NONE", "HS256"] {
        let header = BASE64_URL_SAFE_NO_PAD.encode(json!({ "alg": algorithm, "typ": "JWT" }).to_string());
        refusal(&cluster, &format!("{header}.{payload}.")).await;
        refusal(&cluster, &format!("{header}.{payload}.{signature}")).await;
    }
    // The public key is no secret, in whatever form.
    let public = rsa.public();
    let modulus = public["n"].as_str().unwrap();
    let raw = BASE64_URL_SAFE_NO_PAD.decode(modulus).unwrap();
    for secret in [public.to_string().into_bytes(), modulus.as_bytes().to_vec(), raw, b"secret".to_vec()] {
        let key = EncodingKey::from_secret(&secret);
        let token = encode(&Header::new(Algorithm::HS256), &claims(&json!({})), &key).unwrap();
        refusal(&cluster, &token).await;
    }
    // Another's signature, another algorithm of the same key, and what was changed afterwards.
    refusal(&cluster, &ec.sign(&claims(&json!({})))).await;
    let token = encode(&Header::new(Algorithm::RS512), &claims(&json!({})), &rsa.key).unwrap();
    refusal(&cluster, &token).await;
    let other = BASE64_URL_SAFE_NO_PAD.encode(claims(&json!({ "sub": "admin" })).to_string());
    refusal(&cluster, &good.replace(payload, &other)).await;
    for wrong in ["..", "a.b.c", "x", &good[..good.len() - 4]] {
        assert_eq!(get_model(&cluster, with(wrong, v1::GetModelRequest {})).await, Code::Unauthenticated);
    }
}

#[tokio::test]
async fn an_issuer_changes_its_key_by_changing_the_file() {
    let ([_, old, _], new) = (signers(), next_signer());
    let (cluster, file) = start(&[old.public()], None).await;
    let write = |jwks: &[Value]| fs::write(file.path(), json!({ "keys": jwks }).to_string()).unwrap();
    let (old_token, new_token) = (old.sign(&claims(&json!({}))), new.sign(&claims(&json!({}))));
    let get = async |token: &str| get_model(&cluster, with(token, v1::GetModelRequest {})).await;
    let becomes = async |token: &str, wanted: Code| {
        let end = Instant::now() + Duration::from_secs(30);
        while get(token).await != wanted {
            assert!(Instant::now() < end, "the file's change does not come into force");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!((get(&old_token).await, get(&new_token).await), (Code::Ok, Code::Unauthenticated));

    // A file that is written by halves, or without a key that is of use, takes nothing away.
    for wrong in ["{\"keys\": [", "{\"keys\": []}"] {
        fs::write(file.path(), wrong).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((get(&old_token).await, get(&new_token).await), (Code::Ok, Code::Unauthenticated));
    }
    write(&[old.public(), new.public()]);
    becomes(&new_token, Code::Ok).await;
    assert_eq!(get(&old_token).await, Code::Ok, "until its issuer takes it out");
    write(&[new.public()]);
    becomes(&old_token, Code::Unauthenticated).await;
    assert_eq!(get(&new_token).await, Code::Ok);
    // Nor under the new one's name.
    let forged = Signer { id: new.id, ..old };
    assert_eq!(get(&forged.sign(&claims(&json!({})))).await, Code::Unauthenticated);
}

#[tokio::test]
async fn tenants_without_a_key_have_the_quotas_of_all_tokens() {
    let [_, _, signer] = signers();
    let more = entry("key", "team-7", "requests_per_minute = 2");
    let keys = KeyFile::new(&format!("{more}[jwt]\nrequests_per_minute = 1"));
    let (cluster, _file) = start(&[signer.public()], Some(&keys)).await;
    let token = |tenant: &str| signer.sign(&claims(&json!({ "sub": tenant })));
    for tenant in ["team-1", "team-2"] {
        generate(&cluster, &token(tenant), cat()).await.unwrap();
        let status = generate(&cluster, &token(tenant), cat()).await.unwrap_err();
        assert!(status.message().contains("1 requests a minute"), "{status}");
    }
    generate(&cluster, "key", cat()).await.unwrap();
    generate(&cluster, &token("team-7"), cat()).await.expect("its second, by whichever way");
    assert_eq!(generate(&cluster, "key", cat()).await.unwrap_err().code(), Code::ResourceExhausted);
}
