// SPDX-License-Identifier: Apache-2.0
//! Channels: where events of a team are delivered, and the log of deliveries.

use reqwest::Method;
use wrenn_api::{
    Channel, ChannelConfig, ChannelId, ConfigureChannel, CreateChannel, Delivery, DeliveryId, TestChannel,
    UpdateChannel,
};

use crate::{
    Client, Result,
    paging::ALL,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Makes a channel. If the server makes the secret of a webhook, only this answer has it.
    pub async fn create_channel(&self, new: &CreateChannel) -> Result<Channel> {
        let call = self.request(Method::POST, "/v1/channels").timeout(REQUEST_LIMIT).json(new);
        self.json(call, ANSWER_MAX).await
    }

    /// Lists the channels of the team.
    pub async fn list_channels(&self) -> Result<Vec<Channel>> {
        self.every("/v1/channels", &ALL).await
    }

    /// Returns a channel.
    pub async fn get_channel(&self, channel: ChannelId) -> Result<Channel> {
        let call = self.request(Method::GET, &format!("/v1/channels/{channel}")).timeout(REQUEST_LIMIT);
        self.json(call, ANSWER_MAX).await
    }

    /// Changes name or events of a channel.
    pub async fn update_channel(&self, channel: ChannelId, update: &UpdateChannel) -> Result<Channel> {
        let call = self.request(Method::PATCH, &format!("/v1/channels/{channel}")).timeout(REQUEST_LIMIT);
        self.json(call.json(update), ANSWER_MAX).await
    }

    /// Lets a channel lead to somewhere else. If the server makes the secret of a webhook, only this answer has it.
    pub async fn configure_channel(&self, channel: ChannelId, config: &ChannelConfig) -> Result<Channel> {
        let call =
            self.request(Method::PUT, &format!("/v1/channels/{channel}/config")).timeout(REQUEST_LIMIT);
        self.json(call.json(&ConfigureChannel { config: config.clone() }), ANSWER_MAX).await
    }

    /// Deletes a channel.
    pub async fn delete_channel(&self, channel: ChannelId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/channels/{channel}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Sends a message for a try to where a configuration leads. Fails if it is not taken.
    pub async fn test_channel(&self, test: &TestChannel) -> Result<()> {
        let call = self.request(Method::POST, "/v1/channels/test").timeout(REQUEST_LIMIT).json(test);
        self.send(call).await.map(drop)
    }

    /// Lists the newest deliveries to a channel; also returns the cursor of the ones before them.
    pub async fn list_deliveries(
        &self,
        channel: ChannelId,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<(Vec<Delivery>, Option<String>)> {
        self.page(&format!("/v1/channels/{channel}/deliveries"), &[("limit", limit)], cursor).await
    }

    /// Asks for a delivery again, and returns it as it waits for its attempt.
    pub async fn redeliver(&self, channel: ChannelId, delivery: DeliveryId) -> Result<Delivery> {
        let path = format!("/v1/channels/{channel}/deliveries/{delivery}/redeliver");
        self.json(self.request(Method::POST, &path).timeout(REQUEST_LIMIT), ANSWER_MAX).await
    }
}
