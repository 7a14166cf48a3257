//! Latents to encoded pictures.

use super::{
    Pipeline,
    error::GenerateError,
    hop::{self, Fault, Placing, Spent},
};
use crate::placement::Lease;
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, Tensor, vae_service_client::VaeServiceClient},
};
use tracing::{Instrument, field::Empty, info_span};

impl Pipeline<'_> {
    pub(super) async fn decode(
        self,
        image_index: u32,
        seed: u64,
        latents: Tensor,
        timings: &mut Vec<v1::StageTiming>,
    ) -> Result<v1::Image, GenerateError> {
        let fleet = &self.fleets.vae;
        let span = info_span!("decode", stage = %fleet.stage(), replica = Empty, image_index);
        async {
            let mut placing = Placing::new(self, fleet, self.latent_pixels(), true);
            loop {
                let lease = placing.next().await?;
                let replica = Some(lease.replica().address());
                self.events.progress(fleet.stage(), Some(image_index), self.plan.steps(), replica);
                let call = self.decode_on(&lease, latents.clone());
                match placing.call("sdxl.v1.VaeService/Decode", lease.replica(), call).await {
                    Ok((answer, spent)) => {
                        let work = self.latent_pixels();
                        lease.replica().stepped(work, work, work, spent.on_device());
                        self.promise.done(fleet.stage(), self.latent_pixels());
                        timings.push(placing.timing(Some(image_index), &spent));
                        let v1::DecodeResponse { data, media_type, width, height, .. } = answer;
                        return Ok(v1::Image { data, media_type, width, height, seed });
                    }
                    Err(fault) => placing.failed(lease.replica(), fault, self.patience)?,
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn decode_on(self, lease: &Lease, latents: Tensor) -> Result<(v1::DecodeResponse, Spent), Fault> {
        let mut client =
            VaeServiceClient::new(lease.replica().channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = v1::DecodeRequest {
            latents: Some(latents),
            image_format: v1::ImageFormat::from(self.plan.image_format).into(),
            quality: self.plan.quality,
        };
        let request = hop::request(request, self.terms);
        let answer = hop::answer(lease.replica(), client.decode(request)).await?;
        self.check(&answer).map_err(Fault::Reply)?;
        let (queue_time, run_time) = (answer.queue_time, answer.run_time);
        let spent = Spent { queue_time, run_time, ..Spent::default() };
        Ok((answer, spent))
    }

    fn check(self, answer: &v1::DecodeResponse) -> Result<(), String> {
        let (format, size) = (self.plan.image_format.media_type(), self.plan.size);
        if answer.media_type != format {
            return Err(format!("media_type is {:?}, not {format:?}", answer.media_type));
        }
        if (answer.height, answer.width) != (size.height, size.width) {
            let (height, width) = (answer.height, answer.width);
            return Err(format!("the picture is {height}x{width} (height x width), not {size}"));
        }
        if answer.data.is_empty() {
            return Err("the picture is empty".to_owned());
        }
        Ok(())
    }
}
