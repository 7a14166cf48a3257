//! Attention of single heads with its gradients; the scores of one head of one item are all that is ever held.

use super::{
    Precision,
    matmul::{Left, Right, Target, View, product},
    scratch::Scratch,
    vector,
};

/// One head of one item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) rows: usize,
    pub(super) context: usize,
    /// Width of this head.
    pub(super) depth: usize,
    pub(super) causal: bool,
    pub(super) precision: Precision,
}

/// Queries, keys and values of one head, or their gradients' places, with the distance from row to row of each.
pub(super) type Rows<'a> = [(&'a [f32], usize); 3];

impl Head {
    /// Scores' distance from row to row: whole tiles, and no multiple of a page.
    fn stride(self) -> usize {
        let stride = self.context.next_multiple_of(16);
        if stride.is_multiple_of(256) { stride + 16 } else { stride }
    }

    #[expect(clippy::cast_precision_loss, reason = "a head's width")]
    fn scale(self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }

    fn left<'a>(self, (data, stride): (&'a [f32], usize), rows: usize) -> Left<'a> {
        Left::new(View::new(data, stride), [rows, self.depth], self.precision)
    }

    /// Softmax of the scores, `[rows, stride]`.
    fn weights(self, q: &Left<'_>, (k, stride): (&[f32], usize)) -> Scratch<f32> {
        let mut weights = Scratch::stale(self.rows * self.stride());
        let k = View::new(k, stride).transposed();
        let k = Right::new(k, [self.depth, self.context], self.precision);
        product(q, &k, &mut Target::roomy(&mut weights, self.stride()));
        vector::softmax_rows(&mut weights, [self.stride(), self.context], self.causal, self.scale());
        weights
    }

    /// The head's result, into `y`.
    pub(super) fn forward(self, [q, k, v]: Rows<'_>, y: &mut Target<'_>) {
        let weights = self.weights(&self.left(q, self.rows), k);
        let weights = View::new(&weights, self.stride());
        let weights = Left::new(weights, [self.rows, self.context], self.precision);
        let v = Right::new(View::new(v.0, v.1), [self.context, self.depth], self.precision);
        product(&weights, &v, y);
    }

    /// Writes the gradients of queries, keys and values from that of the result.
    pub(super) fn backward(self, [q, k, v]: Rows<'_>, dy: (&[f32], usize), slopes: [&mut Target<'_>; 3]) {
        let Self { rows, context, depth, precision, .. } = self;
        let [dq, dk, dv] = slopes;
        let weights = self.weights(&self.left(q, rows), k);
        let scores = |s| View::new(s, self.stride());
        let right = |(data, stride), rows| Right::new(View::new(data, stride), [rows, depth], precision);
        let turned = |s| Left::new(scores(s).transposed(), [context, rows], precision);
        product(&turned(&weights), &right(dy, rows), dv);
        let mut slopes = Scratch::stale(rows * self.stride());
        let v = Right::new(View::new(v.0, v.1).transposed(), [depth, context], precision);
        product(&self.left(dy, rows), &v, &mut Target::roomy(&mut slopes, self.stride()));
        vector::softmax_rows_back(&weights, &mut slopes, [self.stride(), context], self.scale());
        product(&Left::new(scores(&slopes), [rows, context], precision), &right(k, context), dq);
        product(&turned(&slopes), &right(q, rows), dk);
    }
}

/// All heads of some items.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) head: Head,
    /// Of all heads of an item.
    pub(super) width: usize,
}

/// Queries, keys and values of all heads of some items, keys and values in rows of one buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projected<'a> {
    pub(super) q: &'a [f32],
    /// Distance from row to row.
    pub(super) q_stride: usize,
    /// Keys, then values.
    pub(super) kv: &'a [f32],
    pub(super) kv_stride: usize,
}

impl Heads {
    /// First rows of queries and keys, and first column, of each head of each item.
    fn starts(self, items: usize) -> impl Iterator<Item = ([usize; 2], usize)> {
        let Head { rows, context, depth, .. } = self.head;
        let columns = (0..self.width).step_by(depth);
        (0..items)
            .flat_map(move |item| columns.clone().map(move |column| ([item * rows, item * context], column)))
    }

    fn rows<'a>(self, projected: Projected<'a>, [q_row, k_row]: [usize; 2], column: usize) -> Rows<'a> {
        let Projected { q, q_stride, kv, kv_stride } = projected;
        let keys = &kv[k_row * kv_stride + column..];
        [(&q[q_row * q_stride + column..], q_stride), (keys, kv_stride), (&keys[self.width..], kv_stride)]
    }

    /// Writes what the heads give to `y`, rows of `width`.
    pub(super) fn forward(self, projected: Projected<'_>, y: &mut [f32]) {
        for (first, column) in self.starts(y.len() / (self.head.rows * self.width)) {
            let mut y = Target::new(&mut y[first[0] * self.width + column..], self.width);
            self.head.forward(self.rows(projected, first, column), &mut y);
        }
    }

    /// From the gradient `dy` of the result: gives that of the queries, rows of `width`, and writes that of keys and
    /// values to `dkv`, which is laid out as they are.
    pub(super) fn backward(self, projected: Projected<'_>, dy: &[f32], dkv: &mut [f32]) -> Scratch<f32> {
        let (Head { rows, context, depth, .. }, width) = (self.head, self.width);
        let mut dq = Scratch::stale(dy.len());
        // Keys and values are two targets in the rows of one buffer, which cannot be lent twice.
        let [mut dk, mut dv] = [(); 2].map(|()| Scratch::stale(context * depth));
        for (first, column) in self.starts(dy.len() / (rows * width)) {
            let at = first[0] * width + column;
            let mut dq = Target::new(&mut dq[at..], width);
            let (mut to_dk, mut to_dv) = (Target::new(&mut dk, depth), Target::new(&mut dv, depth));
            let slopes = [&mut dq, &mut to_dk, &mut to_dv];
            self.head.backward(self.rows(projected, first, column), (&dy[at..], width), slopes);
            for (slopes, shift) in [(&dk, 0), (&dv, width)] {
                let to = &mut dkv[first[1] * projected.kv_stride + column + shift..];
                for (to, row) in to.chunks_mut(projected.kv_stride).zip(slopes.chunks_exact(depth)) {
                    to[..depth].copy_from_slice(row);
                }
            }
        }
        dq
    }
}
