// SPDX-License-Identifier: Apache-2.0
//! ImageService: which function serves which call.

use tonic::{Request, Response, Status};

use super::list_stream::{Chunks, stream};
use super::{Server, image};
use crate::v1;

#[tonic::async_trait]
impl v1::image_service_server::ImageService for Server {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::ListImagesResponse {
            images: image::list(&self.runtime, request.filter.as_ref()).await?,
        }))
    }

    type StreamImagesStream = Chunks<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter;
        let found = image::list(&self.runtime, filter.as_ref()).await?;
        Ok(stream(found, |images| v1::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(image::status(&self.runtime, &request).await?))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(image::pull(&self.runtime, request).await?))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(image::remove(&self.runtime, request).await?))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        Ok(Response::new(image::fs_info(&self.runtime).await?))
    }
}
