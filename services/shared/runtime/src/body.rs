//! Bodies whose large pieces come in two: a few bytes, and the rest.
//!
//! A message's length is in its first five bytes, and tonic makes room for as much as that beyond what it has of the
//! message already. Where a frame holds all of it, that copies the message once more and keeps twice the memory for as
//! long as any field of it is held. With a frame of its own for the length, there is room for just the message.

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Status, body::Body};
use tower::Service;

/// The compression flag and the length before each message.
const PREFIX: usize = 5;
/// What tonic has room for without asking; smaller pieces stay whole.
const SMALL: usize = 8 * 1024;

/// A body in such pieces.
#[derive(Debug)]
pub(crate) struct PrefixFirst<B> {
    inner: B,
    rest: Option<Bytes>,
}

impl<B> PrefixFirst<B> {
    pub(crate) const fn new(inner: B) -> Self {
        Self { inner, rest: None }
    }
}

impl<B> http_body::Body for PrefixFirst<B>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        let frame = match frame.into_data() {
            Ok(mut data) if data.len() > SMALL => {
                let prefix = data.split_to(PREFIX);
                self.rest = Some(data);
                Frame::data(prefix)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = self.rest.as_ref().map_or(0, |rest| rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

/// A channel whose requests are such bodies.
#[derive(Clone, Debug)]
pub struct PrefixFirstChannel<S>(S);

impl<S> PrefixFirstChannel<S> {
    /// Around a channel.
    pub const fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for PrefixFirstChannel<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request.map(|body| Body::new(PrefixFirst::new(body))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use std::{collections::VecDeque, future::poll_fn};

    /// Pieces as they are, and then the status.
    struct Pieces(VecDeque<Bytes>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
        }
    }

    #[tokio::test]
    async fn large_pieces_come_in_two_and_no_byte_is_lost() {
        let large: Bytes = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        let small = Bytes::from_static(b"small");
        let mut body = PrefixFirst::new(Pieces([small.clone(), large.clone()].into()));
        let (mut lengths, mut all) = (Vec::new(), Vec::new());
        let mut left = body.size_hint().exact().unwrap();
        while !body.is_end_stream() {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            let data = frame.into_data().unwrap();
            left -= data.len() as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            lengths.push(data.len());
            all.extend_from_slice(&data);
        }
        assert_eq!(lengths, [5, 5, large.len() - 5]);
        assert_eq!(all, [small, large].concat());
    }
}
