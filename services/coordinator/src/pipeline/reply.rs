//! Whether a stage's tensors are what was asked for. The numbers in them are not looked at.

use sdxl_proto::v1::{DType, Tensor};

/// Checks that `tensor` is there, has `shape` (where that says) in one of `dtypes`, and as many bytes as that takes.
///
/// # Errors
/// A line that names `field` and what is wrong.
pub(super) fn tensor(
    field: &str,
    tensor: Option<Tensor>,
    shape: &[Option<u32>],
    dtypes: &[DType],
) -> Result<Tensor, String> {
    let tensor = tensor.ok_or_else(|| format!("{field} is absent"))?;
    let fits = tensor.shape.len() == shape.len()
        && tensor.shape.iter().zip(shape).all(|(got, wanted)| wanted.is_none_or(|wanted| *got == wanted));
    if !fits {
        let wanted: Vec<_> =
            shape.iter().map(|side| side.map_or("?".to_owned(), |n| n.to_string())).collect();
        return Err(format!("{field} has shape {:?}, not [{}]", tensor.shape, wanted.join(", ")));
    }
    let dtype = DType::try_from(tensor.dtype).unwrap_or_default();
    if !dtypes.contains(&dtype) {
        return Err(format!("{field} has dtype {}", dtype.as_str_name()));
    }
    let width = if dtype == DType::F32 { 4_u64 } else { 2 };
    let bytes = tensor.shape.iter().try_fold(width, |bytes, side| bytes.checked_mul(u64::from(*side)));
    if bytes != u64::try_from(tensor.data.len()).ok() {
        let length = tensor.data.len();
        return Err(format!("{field} holds {length} bytes, which do not fit its shape {:?}", tensor.shape));
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

    fn checked(shape: &[u32], dtype: DType, bytes: usize) -> Result<Tensor, String> {
        let sent = Tensor { shape: shape.to_vec(), dtype: dtype.into(), data: vec![0; bytes].into() };
        tensor("latents", Some(sent), &[Some(4), None], &ANY)
    }

    #[test]
    fn what_fits_passes_as_it_is() {
        assert_eq!(checked(&[4, 3], DType::F32, 48).unwrap().data.len(), 48);
        assert!(checked(&[4, 3], DType::Bf16, 24).is_ok());
        assert!(checked(&[4, 0], DType::F32, 0).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(tensor("latents", None, &[], &ANY).unwrap_err(), "latents is absent");
        assert_eq!(checked(&[3, 3], DType::F32, 36).unwrap_err(), "latents has shape [3, 3], not [4, ?]");
        assert_eq!(checked(&[4], DType::F32, 16).unwrap_err(), "latents has shape [4], not [4, ?]");
        assert_eq!(
            checked(&[4, 3], DType::F16, 48).unwrap_err(),
            "latents holds 48 bytes, which do not fit its shape [4, 3]"
        );
        assert_eq!(
            checked(&[4, 3], DType::Unspecified, 48).unwrap_err(),
            "latents has dtype D_TYPE_UNSPECIFIED"
        );
        assert!(checked(&[4, u32::MAX], DType::F32, 8).is_err());
    }
}
