//! The CPU's convolution: im2col in bands of rows, each multiplied straight into its place in the result.
//!
//! candle's own lays the whole input out anew with one thread and scatters its columns; here a band's columns are
//! copied row by row into a buffer that stays in the cache, and threads share the bands. A band's size depends on the
//! shapes alone, so the result does not depend on the number of threads.
#![expect(unsafe_code, reason = "gemm takes pointers; see `multiply`")]

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, bail};
use gemm::Parallelism;
use rayon::prelude::*;

/// The columns of one band. Larger bands repeat the packing of the weights less often, smaller ones stay in the cache.
const BAND_BYTES: usize = 8 << 20;

/// `x` `[B, C_in, H, W]`, `weight` `[C_out, C_in, k, k]` and `bias` `[C_out]`, all f32 and contiguous, to
/// `[B, C_out, H_out, W_out]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolve {
    pub(super) stride: usize,
    pub(super) padding: usize,
}

/// One convolution's sizes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    c_in: usize,
    height: usize,
    width: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    out_height: usize,
    out_width: usize,
}

impl Sizes {
    fn new(op: Convolve, x: &[usize], weight: &[usize], bias: usize) -> Result<Self> {
        let (&[_, c_in, height, width], &[c_out, weight_in, kernel, kernel_width]) = (x, weight) else {
            bail!("convolve takes pictures and square kernels, not {x:?} and {weight:?}");
        };
        let Convolve { stride, padding } = op;
        if c_in != weight_in || kernel != kernel_width || bias != c_out || stride == 0 {
            bail!("convolve: {x:?} does not fit a kernel of {weight:?} with {bias} biases");
        }
        if kernel == 0 || height + 2 * padding < kernel || width + 2 * padding < kernel {
            bail!("convolve: {x:?} is smaller than a kernel of {weight:?}");
        }
        let out = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (out_height, out_width) = (out(height), out(width));
        Ok(Self { c_in, height, width, c_out, kernel, stride, padding, out_height, out_width })
    }

    /// Rows of the column matrix: the values that one output value is a sum over.
    fn depth(&self) -> usize {
        self.c_in * self.kernel * self.kernel
    }

    fn out_plane(&self) -> usize {
        self.out_height * self.out_width
    }

    fn rows_per_band(&self) -> usize {
        let row_bytes = self.depth() * self.out_width * size_of::<f32>();
        (BAND_BYTES / row_bytes.max(1)).clamp(1, self.out_height)
    }

    /// Whether a picture is its own column matrix.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// Columns of output rows `rows`, `[depth, rows * out_width]`, from one picture `[C_in, H, W]`.
    fn columns(&self, picture: &[f32], rows: std::ops::Range<usize>) -> Vec<f32> {
        let len = rows.len() * self.out_width;
        let mut columns = vec![0_f32; self.depth() * len];
        for (at, line) in columns.chunks_exact_mut(len).enumerate() {
            let (channel, tap) = (at / (self.kernel * self.kernel), at % (self.kernel * self.kernel));
            let plane = &picture[channel * self.height * self.width..][..self.height * self.width];
            for (row, out) in rows.clone().zip(line.chunks_exact_mut(self.out_width)) {
                let y = row * self.stride + tap / self.kernel;
                if let Some(y) = y.checked_sub(self.padding).filter(|y| *y < self.height) {
                    self.line(&plane[y * self.width..][..self.width], tap % self.kernel, out);
                }
            }
        }
        columns
    }

    /// What one tap of the kernel sees along one row; zero outside the picture.
    fn line(&self, row: &[f32], tap: usize, out: &mut [f32]) {
        // Output x sees input x * stride + tap - padding.
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let end = (self.width + self.padding).saturating_sub(tap).div_ceil(self.stride).min(out.len());
        if first >= end {
            return;
        }
        let from = first * self.stride + tap - self.padding;
        if self.stride == 1 {
            out[first..end].copy_from_slice(&row[from..from + (end - first)]);
        } else {
            for (out, x) in out[first..end].iter_mut().zip(row[from..].iter().step_by(self.stride)) {
                *out = *x;
            }
        }
    }
}

/// The result's memory, shared by threads that write to different parts of it.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    len: usize,
}

// SAFETY: a `Target` is only written through by `multiply`, whose callers own different bands.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `target[at + c * plane + i] += sum over d of weight[c][d] * columns[d][i]` for all channels `c` and `i < len`, with
/// `columns` `[depth, stride]`, of which the first `len` of each row count.
fn multiply(
    sizes: &Sizes,
    target: Target,
    at: usize,
    weight: &[f32],
    (columns, stride, len): (&[f32], usize, usize),
    parallelism: Parallelism,
) {
    let (m, k, plane) = (sizes.c_out, sizes.depth(), sizes.out_plane());
    assert!(weight.len() == m * k && len <= stride && columns.len() >= (k - 1) * stride + len);
    assert!(at + (m - 1) * plane + len <= target.len);
    let step = isize::try_from;
    let (Ok(plane), Ok(row), Ok(stride)) = (step(plane), step(k), step(stride)) else { return };
    // SAFETY: gemm reads `weight[c * k + d]` for c < m and d < k, and `columns[d * stride + i]` for d < k and i < len,
    // and reads and writes `target[at + c * plane + i]` for c < m and i < len. The assertions above keep all of these
    // within their slices. No other thread touches the latter: `at` and `len` are one band's, bands of a picture are
    // disjoint ranges of each plane, and pictures do not overlap.
    unsafe {
        gemm::gemm(
            m,
            len,
            k,
            target.start.add(at),
            1,
            plane,
            true,
            weight.as_ptr(),
            1,
            row,
            columns.as_ptr(),
            1,
            stride,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

impl CustomOp3 for Convolve {
    fn name(&self) -> &'static str {
        "convolve"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes =
            Sizes::new(*self, x_layout.dims(), weight_layout.dims(), bias_layout.shape().elem_count())?;
        let batch = x_layout.dims()[0];
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let bias = contiguous(bias, bias_layout)?;
        let picture_len = sizes.c_in * sizes.height * sizes.width;
        let plane = sizes.out_plane();

        let mut out = vec![0_f32; batch * sizes.c_out * plane];
        for (plane, bias) in out.chunks_exact_mut(plane).zip(bias.iter().cycle()) {
            plane.fill(*bias);
        }
        let target = Target { start: out.as_mut_ptr(), len: out.len() };
        let rows = sizes.rows_per_band();
        let bands: Vec<_> = (0..batch)
            .flat_map(|item| (0..sizes.out_height).step_by(rows).map(move |row| (item, row)))
            .collect();
        let run = |(item, row): (usize, usize), parallelism: Parallelism| {
            let picture = &x[item * picture_len..][..picture_len];
            let band = row..(row + rows).min(sizes.out_height);
            let (first, len) = (row * sizes.out_width, band.len() * sizes.out_width);
            let at = item * sizes.c_out * plane + first;
            if sizes.is_pointwise() {
                multiply(&sizes, target, at, weight, (&picture[first..], plane, len), parallelism);
            } else {
                let columns = sizes.columns(picture, band);
                multiply(&sizes, target, at, weight, (&columns, len, len), parallelism);
            }
        };
        // Few bands are multiplied by all threads together, many by one thread each.
        if bands.len() < rayon::current_num_threads() {
            bands.into_iter().for_each(|band| run(band, Parallelism::Rayon(0)));
        } else {
            bands.into_par_iter().for_each(|band| run(band, Parallelism::None));
        }
        Ok((CpuStorage::F32(out), (batch, sizes.c_out, sizes.out_height, sizes.out_width).into()))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("convolve takes contiguous tensors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Against candle's own convolution, which is another algorithm, at sizes that cut bands and edges in every way.
    #[test]
    fn equals_candles_own() {
        for (shape, c_out, kernel, stride, padding) in [
            ((2, 5, 43, 19), 7, 3, 1, 1),
            ((1, 3, 8, 8), 4, 3, 2, 1),
            ((2, 3, 9, 6), 4, 3, 2, 1),
            ((1, 4, 1, 1), 2, 3, 1, 1),
            ((1, 6, 7, 1), 5, 3, 1, 1),
            ((2, 8, 12, 10), 3, 1, 1, 0),
            ((1, 2, 11, 7), 3, 3, 2, 0),
            ((1, 512, 80, 70), 9, 3, 1, 1),
        ] {
            let (_, c_in, _, _) = shape;
            let draw = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            let x = draw(&[shape.0, shape.1, shape.2, shape.3]);
            let (weight, bias) = (draw(&[c_out, c_in, kernel, kernel]), draw(&[c_out]));
            let ours = x.apply_op3_no_bwd(&weight, &bias, &Convolve { stride, padding }).unwrap();
            let theirs = x.conv2d(&weight, padding, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&bias.reshape((1, c_out, 1, 1)).unwrap()).unwrap();
            assert_eq!(ours.dims(), theirs.dims());
            let worst =
                (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let terms = f32::from(u16::try_from(c_in * kernel * kernel).unwrap());
            assert!(worst <= 1e-6 * terms.max(10.0), "{shape:?} kernel {kernel} stride {stride}: {worst}");
        }
    }

    #[test]
    fn a_large_picture_has_many_bands() {
        let sizes =
            Sizes::new(Convolve { stride: 1, padding: 1 }, &[1, 512, 80, 70], &[9, 512, 3, 3], 9).unwrap();
        assert!((2..80).contains(&sizes.rows_per_band()), "{}", sizes.rows_per_band());
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let draw = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let op = Convolve { stride: 1, padding: 1 };
        let error = draw(&[1, 3, 8, 8]).apply_op3_no_bwd(&draw(&[4, 2, 3, 3]), &draw(&[4]), &op).unwrap_err();
        assert!(error.to_string().contains("[4, 2, 3, 3]"), "{error}");
    }
}
