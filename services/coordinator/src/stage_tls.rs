//! TLS to the stages: what is given for it, and whether it makes sense.

use clap::Args;
use sdxl_runtime::tls::{ClientTls, PemFile, PemFiles, TlsError};
use std::path::PathBuf;

const CA: &str = "stage-tls-ca";
const CERT: &str = "stage-tls-cert";
const KEY: &str = "stage-tls-key";
const NAME: &str = "stage-tls-name";

/// How stages are connected to. Files are read again when they change.
#[derive(Args, Clone, Debug, Default)]
pub struct StageTlsArgs {
    /// Certificates of authorities, in PEM: stages are connected to by TLS alone, and must show a certificate of one of them
    #[arg(long, env = "SDXL_STAGE_TLS_CA", value_name = "FILE")]
    pub stage_tls_ca: Option<PathBuf>,

    /// The certificate that is shown to stages and those between it and its authority, in PEM
    #[arg(long, env = "SDXL_STAGE_TLS_CERT", value_name = "FILE")]
    pub stage_tls_cert: Option<PathBuf>,

    /// The private key of --stage-tls-cert, in PEM
    #[arg(long, env = "SDXL_STAGE_TLS_KEY", value_name = "FILE")]
    pub stage_tls_key: Option<PathBuf>,

    /// The name that the certificates of all stages are for, where their addresses are others; if not given, the host in a
    /// replica's address
    #[arg(long, env = "SDXL_STAGE_TLS_NAME", value_name = "NAME")]
    pub stage_tls_name: Option<String>,
}

impl StageTlsArgs {
    /// Reads the files; `None` where none is given, for stages without TLS.
    ///
    /// # Errors
    /// [`TlsError`], one line that names the flag and the file.
    pub(crate) fn read(&self) -> Result<Option<ClientTls>, TlsError> {
        // An environment variable that is set to nothing is no name.
        let name = self.stage_tls_name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let files = PemFiles {
            ca: PemFile::given(CA, self.stage_tls_ca.as_ref()),
            cert: PemFile::given(CERT, self.stage_tls_cert.as_ref()),
            key: PemFile::given(KEY, self.stage_tls_key.as_ref()),
        };
        let alone = |given, missing| Err(TlsError::Alone { given, missing });
        match (&files.ca, &files.cert, &files.key) {
            (_, Some(_), None) => alone(CERT, KEY),
            (_, None, Some(_)) => alone(KEY, CERT),
            (None, Some(_), Some(_)) => alone(CERT, CA),
            (None, None, None) if name.is_some() => alone(NAME, CA),
            (None, None, None) => Ok(None),
            (Some(_), _, _) => ClientTls::new(files, name, NAME).map(Some),
        }
    }
}
