// Just enough of this package's API to type-check the sample.

package android.content.res
class AssetManager { fun open(n: String): java.io.InputStream = TODO() }
