// swift-tools-version: 5.9
// Stands in for onnxruntime-swift-package-manager, whose own manifest (1.24.2) asks for the same platforms.
import PackageDescription

let package = Package(
    name: "onnxruntime",
    platforms: [.iOS(.v15), .macOS(.v14)],
    products: [.library(name: "onnxruntime", type: .static, targets: ["OnnxRuntimeBindings"])],
    targets: [.target(name: "OnnxRuntimeBindings")]
)
