FROM golang:1.24 AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache go build -o /out/server ./cmd/server

FROM gcr.io/distroless/base
COPY --from=build /out/server /server
ENTRYPOINT ["/server"]
