FROM node:22-bookworm-slim
ENV NODE_ENV production
WORKDIR /srv/app
COPY --chown=node:node package*.json ./
RUN --secret=npm_token --timeout=15m \
    npm config set //registry.npmjs.org/:_authToken "$(cat /run/secrets/npm_token)" && npm ci --omit=dev
COPY --chown=node:node . .
USER node
EXPOSE 3000/tcp
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=10 \
  CMD node -e "fetch('http://localhost:3000/health').then(r => process.exit(r.ok ? 0 : 1))"
CMD [ "node", "server.js" ]
