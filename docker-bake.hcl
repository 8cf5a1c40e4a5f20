// The released image: docker buildx bake --file docker-bake.hcl --push
// Attestations need a builder with the docker-container driver and a registry that takes them.

variable "IMAGE" { default = "pushgate" }
variable "VERSION" { default = "0.1.0" }

// git rev-parse HEAD; date --utc +%Y-%m-%dT%H:%M:%SZ; the address of the repository
variable "REVISION" { default = "" }
variable "CREATED" { default = "" }
variable "SOURCE" { default = "" }

// Without internet access: what the Dockerfile downloads from. Addresses only; null means the public ones.
variable "REGISTRY" { default = null }
variable "PIP_INDEX_URL" { default = null }
variable "DEBIAN_MIRROR" { default = null }
variable "DEBIAN_SECURITY_MIRROR" { default = null }

// Files with the CA and the credentials. They are mounted while a step runs, and are in no layer.
variable "CA_FILE" { default = "" }
variable "PIP_CONF" { default = "" }
variable "APT_AUTH" { default = "" }

target "default" {
  context    = "."
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${IMAGE}:${VERSION}"]
  attest     = ["type=provenance,mode=max", "type=sbom"]
  args = {
    VERSION                = VERSION
    REVISION               = REVISION
    CREATED                = CREATED
    SOURCE                 = SOURCE
    REGISTRY               = REGISTRY
    PIP_INDEX_URL          = PIP_INDEX_URL
    DEBIAN_MIRROR          = DEBIAN_MIRROR
    DEBIAN_SECURITY_MIRROR = DEBIAN_SECURITY_MIRROR
  }
  secret = concat(
    CA_FILE == "" ? [] : ["id=ca.crt,src=${CA_FILE}"],
    PIP_CONF == "" ? [] : ["id=pip.conf,src=${PIP_CONF}"],
    APT_AUTH == "" ? [] : ["id=apt-auth,src=${APT_AUTH}"],
  )
}
