//! Tokens: JWTs signed with one of the keys of a JWKS.
//!
//! Each key verifies by one algorithm, which follows from the key and never from the token: so neither "none" nor a
//! symmetric algorithm over a public key gets anywhere (RFC 8725, sections 2.1 and 3.1).

use super::{AccessError, FileError, JwtConfig};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use sdxl_core::Tenant;
use serde::Deserialize;
use std::fmt;
use tracing::warn;

/// By how much clocks may differ, in seconds.
const LEEWAY: u64 = 10;
/// An RSA modulus of 2048 bits in base64 without padding.
const MIN_RSA_CHARACTERS: usize = 342;

/// What signs tokens, and what they must say.
pub(super) struct Tokens(Vec<Verifier>);

struct Verifier {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

/// What is read of a token.
#[derive(Deserialize)]
struct Claims {
    sdxl_tenant: Option<String>,
    sub: Option<String>,
}

#[derive(Deserialize)]
struct Set {
    /// One by one: a key of a kind that is not known is no reason to refuse the others.
    keys: Vec<serde_json::Value>,
}

impl Tokens {
    /// The keys of a JWKS that can verify tokens.
    ///
    /// # Errors
    /// [`FileError`], also where there is none.
    pub(super) fn parse(jwks: &str, config: &JwtConfig) -> Result<Self, FileError> {
        let set: Set = serde_json::from_str(jwks)
            .map_err(|error| FileError::Jwks { line: error.line(), column: error.column() })?;
        let count = set.keys.len();
        let verifiers: Vec<_> = set.keys.into_iter().filter_map(|key| Verifier::new(key, config)).collect();
        if verifiers.is_empty() {
            return Err(FileError::NoVerifier);
        }
        if verifiers.len() < count {
            warn!(
                "of {count} keys in --jwt-keys {} are of use: RS256, ES256 or EdDSA, for signatures",
                verifiers.len()
            );
        }
        Ok(Self(verifiers))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`AccessError`]; it repeats nothing of the token.
    pub(super) fn tenant(&self, token: &str) -> Result<Tenant, AccessError> {
        let header = decode_header(token).map_err(|_| AccessError::Unknown)?;
        let of_its_kind = self.0.iter().filter(|verifier| verifier.algorithm == header.alg);
        let is_named = |verifier: &&Verifier| match (&header.kid, &verifier.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        let mut why = AccessError::Unknown;
        for verifier in of_its_kind.filter(is_named) {
            match decode::<Claims>(token, &verifier.key, &verifier.validation) {
                Ok(token) => return tenant(token.claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => why = explained(error.kind()),
            }
        }
        Err(why)
    }
}

/// Of a token whose signature is right.
fn explained(kind: &ErrorKind) -> AccessError {
    match kind {
        ErrorKind::ExpiredSignature => AccessError::Token("it has expired"),
        ErrorKind::ImmatureSignature => AccessError::Token("it is not valid yet"),
        ErrorKind::InvalidIssuer => AccessError::Token("it is of another issuer"),
        ErrorKind::InvalidAudience => AccessError::Token("it is for another audience"),
        ErrorKind::MissingRequiredClaim(_) => AccessError::Token("it lacks exp, iss or aud"),
        _ => AccessError::Unknown,
    }
}

fn tenant(claims: Claims) -> Result<Tenant, AccessError> {
    let name = claims.sdxl_tenant.or(claims.sub).ok_or(AccessError::Token("it names no tenant"))?;
    name.parse().map_err(|_| AccessError::Token("its sdxl_tenant, or else its sub, is not a tenant's name"))
}

impl Verifier {
    /// `None` for a key that is not used here.
    fn new(key: serde_json::Value, config: &JwtConfig) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature) {
            return None;
        }
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) if key.n.len() >= MIN_RSA_CHARACTERS => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return None,
        };
        let said = jwk.common.key_algorithm.map(|said| said.to_string());
        if said.is_some_and(|said| said != format!("{algorithm:?}")) {
            return None;
        }
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm, key, validation })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|verifier| (&verifier.id, verifier.algorithm))).finish()
    }
}
